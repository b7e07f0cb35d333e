#!/bin/sh
# The MLflow server of a cluster's head, reached through ssh only.
#
#   mlflow_server.sh start [options of `mlflow server`]    started unless it runs; waits until it answers
#   mlflow_server.sh stop                                  its records stay in ~/mlflow
set -eu
home=$HOME/mlflow
lock=$home/lock   # held by the server and all its processes: a second one ends at once, a dead one lets go
mkdir -p "$home"

case ${1:-} in
start)
    shift
    export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
    export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false   # else seven processes of 0.2 GB each wait for GenAI jobs
    # $PPID is flock's: the leader of the session that setsid makes.
    setsid nohup flock --nonblock "$lock" sh -c \
        'echo $PPID > "$0"; exec mlflow server "$@"' "$home/leader" \
        --host 127.0.0.1 --port 5000 --workers 1 --allowed-hosts "localhost:*,127.0.0.1:*" \
        --backend-store-uri "sqlite:///$home/mlflow.db" "$@" >> "$home/server.log" 2>&1 < /dev/null &
    for second in $(seq 300); do
        if python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:5000/health', timeout=2)" \
            2> /dev/null
        then
            exit 0
        fi
        if [ "$second" -gt 10 ] && flock --nonblock "$lock" true; then break; fi   # it has ended
        sleep 1
    done
    echo "the MLflow server does not answer; the end of $home/server.log:" >&2
    tail -n 20 "$home/server.log" >&2
    exit 1
    ;;
stop)
    # Held by nobody: nothing runs.
    flock --nonblock "$lock" true && exit 0
    kill -- "-$(cat "$home/leader")"
    flock --timeout 60 "$lock" true
    ;;
*)
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
