-- include: _accepted.lua
-- include: _end.lua
-- End a turn: last pieces, reply, end, events (laws 1, 2, 3, 12). With replicas, everything is stored and nothing shown:
-- the turn is `closing` until `announce`, which the caller calls once what it wrote is waited for (law 8).
-- ARGV: 1 turn_id, 2 token, 3 status (done|failed|stopped), 4 end event (JSON, without the text), 5 pieces of the whole
--       reply, 6 reply as a stored message ('' for none), 7 timestamp, 8 seq of the first piece of the tail,
--       then pairs: event, token ids
-- Returns {'ok', seq of the reply} | {'closing'} | {'expect', seq} | {'superseded'} | {'gone'}. Idempotent by token: the
-- second call of the one that ended the turn answers the same.
local turn_id, key = ARGV[1], K.turn .. ARGV[1]
local t = redis.call('HMGET', key, 'state', 'token', 'seq', 'client_id', 'conversation_id', 'idempotency_key', 'node',
  'personality', 'ended_by', 'reply_seq', 'untold')
if not is_open(t[1]) then
  if t[9] == ARGV[2] then return { 'ok', t[10] } end
  return { 'gone' }
end
if t[2] ~= ARGV[2] then return { 'superseded' } end
if t[1] == 'closing' then
  lease(turn_id, now_ms())
  barrier()
  return { 'closing' }
end
local fresh, last = add_pieces(turn_id, tonumber(t[3]), ARGV, 8)
if not fresh then return { 'expect', tostring(last) } end
if #fresh > 0 then redis.call('HSET', key, 'seq', last, 'barren', 0) end
if last < tonumber(ARGV[5]) then
  tell(t[4], fresh)
  return { 'expect', tostring(last + 1) }
end

if REPLICAS > 0 then
  redis.call('HSET', key, 'state', 'closing', 'status', ARGV[3], 'end', ARGV[4], 'reply', ARGV[6], 'ended', ARGV[7])
  lease(turn_id, now_ms())
  tell(t[4], fresh)
  return { 'closing' }
end
local facts = { client_id = t[4], conversation_id = t[5], idempotency_key = t[6], node = t[7], personality = t[8], untold = t[11] }
local ended = { status = ARGV[3], event = ARGV[4], reply = ARGV[6], timestamp = ARGV[7], by = ARGV[2] }
return { 'ok', end_turn(turn_id, facts, ended, fresh) }
