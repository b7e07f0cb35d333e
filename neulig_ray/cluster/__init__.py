"""Ray: sessions, jobs, trainings, devices. Knows no stage and no method."""
