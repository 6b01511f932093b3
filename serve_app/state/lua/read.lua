-- A turn as it stands (design, "Following a turn"). Writes nothing.
-- ARGV: 1 turn_id, 2 position: events beyond this piece, with the takeovers right after it
-- Returns {} or {state, client_id, conversation_id, personality, attempt, seq, message_seq, created, end, log there ('1'),
-- reply (JSON or ''), events …}
local turn_id, key = ARGV[1], K.turn .. ARGV[1]
local t = redis.call('HMGET', key, 'state', 'client_id', 'conversation_id', 'personality', 'attempt', 'seq', 'message_seq',
  'created', 'end', 'reply_seq')
if not t[1] then return {} end
local reply = ''
if t[10] and t[10] ~= '0' then reply = redis.call('GET', K.message .. t[3] .. ':' .. t[10]) or '' end
local kept = (t[1] == 'open' or redis.call('EXISTS', log_key(turn_id)) == 1) and '1' or ''
local out = { t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9] or '', kept, reply }
for _, entry in ipairs(redis.call('XRANGE', log_key(turn_id), ARGV[2] .. '-1', '+')) do out[#out + 1] = entry[2][2] end
return out
