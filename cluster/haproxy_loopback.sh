#!/bin/sh
# Starts the HAProxy of Ray Serve with its statistics and metrics on the loopback address.
# Expected: a setting for their address. Actual: Serve writes `bind *:PORT` and `bind :PORT`, that is, every interface.
# Only those two ports are touched; a file that looks otherwise is left as it is.
file='' previous=''
for argument in "$@"; do
    [ "$previous" = "-f" ] && file=$argument
    previous=$argument
done
ports="${RAY_SERVE_HAPROXY_STATS_PORT:-8404}|${RAY_SERVE_HAPROXY_METRICS_PORT:-9101}"
[ -n "$file" ] && sed -i -E "s/^(\s*bind )\*?:($ports)\$/\1127.0.0.1:\2/" "$file" || true
exec "$AURORA_HAPROXY_BINARY" "$@"
