-- A turn as it stands (design, "Following a turn"). A closing one is shown as open: its end is not to be seen yet (law 8).
-- ARGV: 1 turn_id, 2 position: events beyond this piece, with the takeovers right after it, 3 '1' if the caller waits for
-- replicas
-- Returns {} or {state, client_id, conversation_id, personality, attempt, seq, message_seq, created, end, log there ('1'),
-- reply (JSON or ''), events …} or {'untold'}: its message may not be kept yet, to be asked for again by a caller that waits.
local turn_id, key = ARGV[1], K.turn .. ARGV[1]
local t = redis.call('HMGET', key, 'state', 'client_id', 'conversation_id', 'personality', 'attempt', 'seq', 'message_seq',
  'created', 'end', 'reply_seq', 'untold')
if not t[1] then return {} end
if ARGV[3] == '1' then
  barrier()
elseif t[11] then
  return { 'untold' }
end
if t[1] == 'closing' then t[1], t[9] = 'open', nil end
local reply = ''
if t[10] and t[10] ~= '0' then reply = redis.call('GET', K.message .. t[3] .. ':' .. t[10]) or '' end
local kept = (t[1] == 'open' or redis.call('EXISTS', log_key(turn_id)) == 1) and '1' or ''
local out = { t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9] or '', kept, reply }
for _, entry in ipairs(redis.call('XRANGE', log_key(turn_id), ARGV[2] .. '-1', '+')) do out[#out + 1] = entry[2][2] end
return out
