-- Add pieces to the log, renew the lease, tell the followers (laws 2, 3, 9).
-- ARGV: 1 turn_id, 2 token, 3 seq of the first piece, then pairs: event, token ids
-- Returns {'ok', last seq} | {'expect', seq} | {'superseded'} | {'gone'}. Idempotent by token and seq.
local turn_id, key = ARGV[1], K.turn .. ARGV[1]
local t = redis.call('HMGET', key, 'state', 'token', 'seq', 'client_id')
if t[1] ~= 'open' then return { 'gone' } end
if t[2] ~= ARGV[2] then return { 'superseded' } end
local fresh, last = add_pieces(turn_id, tonumber(t[3]), ARGV, 3)
if not fresh then return { 'expect', tostring(last) } end
if #fresh > 0 then redis.call('HSET', key, 'seq', last, 'barren', 0) end
lease(turn_id, now_ms())
tell(t[4], fresh)
return { 'ok', tostring(last) }
