#!/bin/sh
# Starts the HAProxy of Ray Serve with the file that Serve generated (after -f), edited in five places:
#
# 1. Statistics and metrics listen on the loopback address. Expected: a setting for that. Actual: Serve writes `bind *:PORT` and
#    `bind :PORT`, that is, every interface.
# 2. A user of a node is served by that node's own ingress while it is well (`use-server`); else by all the others alike.
#    Expected: a setting. Actual: leastconn over all nodes. Not `backup` for the others: then a connection that the own ingress
#    refuses is not tried on another server before the next health check, and `option allbackups`, which spreads the load, would
#    include the fallback proxy on the head.
# 3. Who waits for a frozen ingress is cut loose as soon as the health check finds it (`on-marked-down shutdown-sessions`).
#    Expected: a server timeout. Actual: none, as an answer may take long.
# 4. A request whose ingress dies or freezes before it has answered goes to another one (`empty-response`). A message is safe to
#    send again with an Idempotency-Key, so it gets one if it has none; and HAProxy sends again only what it holds whole: the body
#    too is waited for (`http-buffer-request`), up to the size of its buffer (`RAY_SERVE_HAPROXY_TUNE_BUFSIZE`).
# 5. While the port of this node is answered by its caretaker (cluster/node/caretaker.py), HAProxy listens there only once it knows
#    an ingress, and then takes the port over from it (`-sf`). Expected: a setting. Actual: Serve starts HAProxy before it knows any,
#    and it answers 404.
#
# A file with servers that look otherwise keeps them as they are, and one that HAProxy refuses once edited is used as it was; both
# are said on stderr, which Serve keeps beside the sockets (aurora-cli logs haproxy). In the end this process is HAProxy, with
# Serve's own arguments (but see 5): Serve knows it by its pid and by the name of that file.
file='' previous=''
for argument in "$@"; do
    [ "$previous" = "-f" ] && file=$argument
    previous=$argument
done

# The caretaker's number; nothing if it is gone, or if that number is another's by now.
caretaker() {
    [ -n "$AURORA_CARETAKER" ] && read -r pid <"$AURORA_CARETAKER" || return 0
    tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q -F "${AURORA_CARETAKER%.pid}.cfg" && echo "$pid"
} 2>/dev/null

edit() {
    awk -v door="${waiting:+${AURORA_NODE_URL##*:}}" -v ports="${RAY_SERVE_HAPROXY_STATS_PORT:-8404} ${RAY_SERVE_HAPROXY_METRICS_PORT:-9101}" '
        function say(what) { print "aurora: " what > "/dev/stderr" }
        BEGIN { split(ports, port, " ") }
        $1 == "backend" || $1 == "frontend" || $1 == "listen" { section = $2 }
        $0 == "  bind *:" port[1] { sub(/\*/, "127.0.0.1"); local_only++ }
        $0 == "    bind :" port[2] { sub(/ :/, " 127.0.0.1:"); local_only++ }
        $1 ~ /^server/ && $1 !~ /^server-state-/ {
            if (/^    server [^ ]+ [^ ]+:[0-9]+ check( observe layer4 error-limit [0-9]+ on-error mark-down)?$/) {
                ingress[NR] = section
                ingresses++
                all[section]++
                if ($3 ~ /^(127\.0\.0\.1|::1):/) own[section, ++owns[section]] = $2
            } else if (!/ check backup$/ && !/ track / && !/ proto h2 /) {
                say("Serve writes this line otherwise than expected; no server is changed: " $0)
                unknown = 1
            }
        }
        door && $1 == "bind" && $2 ~ ":" door "$" { bind = NR }
        { line[NR] = $0 }
        END {
            if (bind && !ingresses && !unknown) line[bind] = "    # aurora: no bind, as no ingress is known yet."
            if (local_only != 2) say("the addresses of statistics and metrics are not where expected; they may be open to all.")
            for (i = 1; i <= NR; i++) {
                if (!(i in ingress) || unknown) { print line[i]; continue }
                section = ingress[i]
                if (all[section] > 1 && !begun[section]++) {
                    print "    option http-buffer-request"
                    print "    retry-on conn-failure empty-response"
                    print "    http-request set-header Idempotency-Key %[uuid()] if METH_POST !{ req.hdr(Idempotency-Key) -m found }"
                    # Several of this node share evenly; the second list is for when one of them is down.
                    if (all[section] > owns[section]) {
                        for (n = owns[section]; n > 1; n--) print "    use-server " own[section, n] " if { rand(" n ") eq 0 }"
                        for (n = 1; n <= owns[section]; n++) print "    use-server " own[section, n] " if TRUE"
                    }
                }
                print line[i] " on-marked-down shutdown-sessions"
            }
        }' "$1"
}

waiting=$(caretaker)
if [ -n "$file" ]; then
    if edit "$file" >"$file.edited" && "$AURORA_HAPROXY_BINARY" -c -q -f "$file.edited" >&2; then
        mv -f "$file.edited" "$file"
    else
        echo "aurora: HAProxy starts with Serve's own file, as it is: the edited one is not valid." >&2
        rm -f "$file.edited"
    fi
    if [ -n "$waiting" ] && grep -q "^    bind .*:${AURORA_NODE_URL##*:}\$" "$file"; then
        # Both listen for a moment, which Serve forbids (-dR); its own later reloads hand the socket on.
        for argument; do
            shift
            [ "$argument" = "-dR" ] || set -- "$@" "$argument"
        done
        set -- "$@" -sf "$waiting"
        rm -f "$AURORA_CARETAKER"
    fi
fi
exec "$AURORA_HAPROXY_BINARY" "$@"
