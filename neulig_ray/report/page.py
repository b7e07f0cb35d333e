"""The style sheet of the HTML report; no script, no font and no picture from elsewhere."""

STYLE = """
:root { color-scheme: light dark;
  --bg: #fbfbfa; --card: #ffffff; --ink: #1c2430; --soft: #5d6776; --line: #e3e6ea; --accent: #2f6fde;
  --good: #10703f; --good-bg: #def3e6; --fair: #7a5200; --fair-bg: #fbecc8; --bad: #a3271c; --bad-bg: #fbe0dc;
  --band: #f3f5f8; }
@media (prefers-color-scheme: dark) { :root {
  --bg: #14171c; --card: #1b1f26; --ink: #e4e8ee; --soft: #98a2b0; --line: #2c323c; --accent: #7aa7ff;
  --good: #7fdca6; --good-bg: #163626; --fair: #f0c767; --fair-bg: #3a2f12; --bad: #ff9c90; --bad-bg: #442220;
  --band: #20252e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main { max-width: 1280px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 34px; }
h1 { font-size: 30px; letter-spacing: -0.02em; margin: 0; }
header p { color: var(--soft); margin: 2px 0 0; }
nav { margin-top: 14px; display: flex; flex-wrap: wrap; gap: 8px; }
nav a { color: var(--accent); text-decoration: none; border: 1px solid var(--line); border-radius: 99px;
  padding: 2px 12px; font-size: 13px; background: var(--card); }
h2 { font-size: 21px; margin: 38px 0 6px; padding-top: 18px; border-top: 1px solid var(--line); }
h3 { font-size: 16px; margin: 34px 0 8px; }
p { max-width: 80ch; }
code { font-size: 0.92em; background: var(--band); padding: 0 4px; border-radius: 4px; }
.facts { color: var(--soft); font-size: 13px; max-width: none; margin: 4px 0; }
.facts span { margin-right: 18px; display: inline-block; }
.facts b { color: var(--ink); font-weight: 600; }
details { font-size: 13px; margin: 6px 0 18px; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px;
  overflow: auto; max-height: 420px; }
figure { margin: 26px 0; padding: 16px 18px; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; text-align: center; }
figure svg { max-width: 100%; height: auto; color: var(--ink); }
figcaption, .caption { color: var(--soft); font-size: 13px; max-width: none; margin: 8px 0 0; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.results { font-size: 12.5px; width: 100%; }
.results th, .results td { padding: 3px 5px; text-align: right; white-space: nowrap; }
.results tbody th { text-align: left; font-weight: 500; padding-left: 16px; position: sticky; left: 0;
  background: var(--card); }
.results thead th { font-weight: 600; font-size: 12px; }
.results thead .group { text-align: center; padding-top: 10px; border-left: 1px solid var(--line); }
.results .sub th { color: var(--soft); font-weight: 400; font-size: 11px;
  border-bottom: 1px solid var(--line); }
.results .sub th:nth-child(3n+1), .results .start { border-left: 1px solid var(--line); padding-left: 9px; }
.results .mer { font-weight: 600; }
.results .ens { color: var(--soft); }
.results .mean { background: var(--band); }
.results .section th { padding: 9px 10px 3px; font-size: 11px; text-transform: uppercase;
  letter-spacing: 0.06em; color: var(--soft); border-top: 1px solid var(--line); font-weight: 600; }
.results .section span { position: sticky; left: 10px; }
.results tbody tr:not(.section):hover td,
.results tbody tr:not(.section):hover th { background: var(--band); }
.results tbody tr:last-child td, .results tbody tr:last-child th { padding-bottom: 10px; }
.published, .results tr.published th, .results tr.published td { font-style: italic; color: var(--soft); }
.results tr.published th, .results tr.published td { background: var(--band); }
.capabilities td, .capabilities th { padding-left: 14px; }
.capabilities small { color: var(--soft); }
.gap { border-radius: 5px; padding: 0 4px; font-size: 0.94em; }
.gap.green { color: var(--good); background: var(--good-bg); }
.gap.yellow { color: var(--fair); background: var(--fair-bg); }
.gap.dim { color: var(--soft); }
.ends { color: var(--soft); font-weight: 400; margin-left: 6px; white-space: nowrap; }
.gap.red { color: var(--bad); background: var(--bad-bg); }
.headline { width: 100%; font-size: 14px; }
.headline th, .headline td { padding: 8px 14px; text-align: right; white-space: nowrap; }
.headline tbody tr + tr { border-top: 1px solid var(--line); }
.headline thead th { color: var(--soft); font-weight: 500; font-size: 12.5px;
  border-bottom: 1px solid var(--line); }
.headline tbody th { text-align: left; }
.headline small { color: var(--soft); font-weight: 400; margin-left: 8px; }
.headline .big { font-size: 16px; font-weight: 600; }
.headline .gap { font-size: 12px; font-weight: 500; margin-left: 2px; }
.none { color: var(--soft); }
.failed { border: 1px solid var(--bad); background: var(--bad-bg); border-radius: 10px; padding: 10px 16px;
  margin-top: 12px; font-size: 13px; }
.failed ul { margin: 4px 0 0; padding-left: 18px; }
.notes { font-size: 13.5px; margin: 14px 0; }
.notes th, .notes td { text-align: left; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
.notes thead th { color: var(--soft); font-weight: 500; }
.notes tbody th { font-weight: 600; white-space: nowrap; }
section:last-child { padding-bottom: 60px; }
abbr { text-decoration: none; cursor: help; color: var(--accent); }
@media print { .scroll { overflow: visible; } nav { display: none; } }
"""
