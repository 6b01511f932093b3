-- include: _session.lua
-- Start an empty conversation and make it the session's current one with its personality.
-- ARGV: 1 client_id, 2 personality, 3 title, 4 node, 5 timestamp, 6 unix, 7 marker of this call
-- Returns the conversation id. Idempotent by marker: a second call returns the first one's conversation.
local client_id, now = ARGV[1], now_ms()
local s, new = touch_session(client_id, ARGV[4], ARGV[5], now, false)
local current = s.conversations[ARGV[2]]
if current and redis.call('HGET', K.conversation .. current, 'marker') == ARGV[7] then
  barrier()
  return current
end
local id = free_conversation(client_id, ARGV[6])
keep_conversation(id, client_id, ARGV[2], ARGV[3], ARGV[5], now)
redis.call('HSET', K.conversation .. id, 'marker', ARGV[7])
s.conversations[ARGV[2]] = id
keep_session(s, now)
if new then tell_session(s) end
return id
