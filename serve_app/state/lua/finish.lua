-- End a turn: last pieces, reply, end, events (laws 1, 2, 3, 12).
-- ARGV: 1 turn_id, 2 token, 3 status (done|failed|stopped), 4 end event (JSON, without the text), 5 pieces of the whole
--       reply, 6 reply as a stored message ('' for none), 7 timestamp, 8 seq of the first piece of the tail,
--       then pairs: event, token ids
-- Returns {'ok', seq of the reply} | {'expect', seq} | {'superseded'} | {'gone'}. Idempotent by token: the second call of
-- the one that ended the turn answers 'ok'.
local turn_id, key = ARGV[1], K.turn .. ARGV[1]
local t = redis.call('HMGET', key, 'state', 'token', 'seq', 'client_id', 'conversation_id', 'idempotency_key', 'node',
  'personality', 'ended_by', 'reply_seq')
if t[1] ~= 'open' then
  if t[9] == ARGV[2] then return { 'ok', t[10] } end
  return { 'gone' }
end
if t[2] ~= ARGV[2] then return { 'superseded' } end
local fresh, last = add_pieces(turn_id, tonumber(t[3]), ARGV, 8)
if not fresh then return { 'expect', tostring(last) } end
if #fresh > 0 then redis.call('HSET', key, 'seq', last, 'barren', 0) end
if last < tonumber(ARGV[5]) then
  tell(t[4], fresh)
  return { 'expect', tostring(last + 1) }
end

local now, conversation, reply_seq = now_ms(), K.conversation .. t[5], '0'
local alive = redis.call('EXISTS', conversation) == 1 and not redis.call('HGET', conversation, 'deleted')
if alive then
  if ARGV[6] ~= '' then
    reply_seq = tostring(redis.call('HINCRBY', conversation, 'last_seq', 1))
    redis.call('SET', K.message .. t[5] .. ':' .. reply_seq, ARGV[6])
  end
  redis.call('HSET', conversation, 'updated', ARGV[7])
  if redis.call('HGET', conversation, 'open_turn') == turn_id then redis.call('HDEL', conversation, 'open_turn') end
  redis.call('ZADD', K.conversations .. t[4], ms(now), t[5])
end
redis.call('HSET', key, 'state', ARGV[3], 'token', '', 'ended_by', ARGV[2], 'end', ARGV[4], 'reply_seq', reply_seq)
redis.call('HDEL', key, 'pinned', 'options')
redis.call('ZREM', K.open, turn_id)
redis.call('ZREMRANGEBYRANK', K.client_turns .. t[4], 0, -101)
redis.call('EXPIRE', K.client_turns .. t[4], TOMBSTONE_SECONDS)
redis.call('EXPIRE', key, TOMBSTONE_SECONDS)
redis.call('EXPIRE', log_key(turn_id), LOG_SECONDS)
if t[6] ~= '' then redis.call('EXPIRE', K.idempotency .. t[4] .. ':' .. t[6], TOMBSTONE_SECONDS) end
if redis.call('EXPIRE', K.session .. t[4], SESSION_SECONDS) == 1 then
  redis.call('ZADD', K.sessions, ms(now + SESSION_SECONDS * 1000), t[4])
end

if alive and ARGV[6] ~= '' then
  redis.call('PUBLISH', K.chat_channel, cjson.encode({ type = 'chat_message', conversation_id = t[5], client_id = t[4],
    node = t[7], role = 'assistant', turn_id = turn_id, seq = tonumber(reply_seq), personality = t[8], status = ARGV[3],
    timestamp = ARGV[7] }))
end
fresh[#fresh + 1] = ARGV[4]
tell(t[4], fresh)
return { 'ok', reply_seq }
