-- include: _session.lua
-- Create or prolong a session. ARGV: 1 client_id, 2 node, 3 timestamp, 4 '1' if a connection was made now
-- Returns {session (JSON), '1' if new}.
local now = now_ms()
local s, new = touch_session(ARGV[1], ARGV[2], ARGV[3], now, ARGV[4] == '1')
keep_session(s, now)
if new then tell_session(s) end
return { cjson.encode(s), new and '1' or '' }
