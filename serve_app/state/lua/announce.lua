-- include: _accepted.lua
-- include: _end.lua
-- Show the end of a turn that is `closing`, once it was waited for (law 8).
-- ARGV: 1 turn_id, 2 token of whoever closed it, or '' to ask for it: what was stored is to be waited for then, and the
--       script called again with the token
-- Returns {'ok', seq of the reply} | {'closing', token} | {'expect', seq}: a failover lost the end, `finish` again |
-- {'superseded'} | {'gone'}. Idempotent by token. A failover that loses this makes it come again, with the same end.
local turn_id, key = ARGV[1], K.turn .. ARGV[1]
local t = redis.call('HMGET', key, 'state', 'token', 'seq', 'client_id', 'conversation_id', 'idempotency_key', 'node',
  'personality', 'ended_by', 'reply_seq', 'untold', 'status', 'end', 'reply', 'ended')
if not is_open(t[1]) then
  if t[9] == ARGV[2] then return { 'ok', t[10] } end
  return { 'gone' }
end
if t[1] == 'closing' and ARGV[2] == '' then
  lease(turn_id, now_ms())
  barrier()
  return { 'closing', t[2] }
end
if t[2] ~= ARGV[2] then return { 'superseded' } end
if t[1] == 'open' then return { 'expect', tostring(t[3] + 1) } end
redis.call('HDEL', key, 'status', 'reply', 'ended')
local facts = { client_id = t[4], conversation_id = t[5], idempotency_key = t[6], node = t[7], personality = t[8], untold = t[11] }
local ended = { status = t[12], event = t[13], reply = t[14], timestamp = t[15], by = ARGV[2] }
return { 'ok', end_turn(turn_id, facts, ended, {}) }
