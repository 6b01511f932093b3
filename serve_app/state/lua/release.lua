-- Give a turn back from a run whose node is leaving, or whose engine failed: its last pieces, then it is due at once (laws 3, 5, 7).
-- ARGV: 1 turn_id, 2 the run's token, 3 the dispatch token it was claimed with, 4 why: 'moved' (the node is leaving) or another
--       word, 5 seq of the first piece, then pairs: event, token ids
-- Returns {'ok', last seq} | {'expect', seq} | {'superseded'} | {'gone'}. Whoever dispatched the run may dispatch it again with
-- the same token; else a sweep finds it. That a node leaves is no fault of the turn: such a run does not count as barren.
-- Idempotent by token.
local turn_id, key = ARGV[1], K.turn .. ARGV[1]
local t = redis.call('HMGET', key, 'state', 'token', 'seq', 'client_id', 'barren', 'moved')
if t[1] ~= 'open' then return { 'gone' } end
if t[6] == ARGV[2] then return { 'ok', t[3] } end
if t[2] ~= ARGV[2] then return { 'superseded' } end
local fresh, last = add_pieces(turn_id, tonumber(t[3]), ARGV, 5)
if not fresh then return { 'expect', tostring(last) } end
local barren = tonumber(t[5])
if #fresh > 0 then barren = 0 elseif ARGV[4] == 'moved' then barren = math.max(0, barren - 1) end
redis.call('HSET', key, 'token', ARGV[3], 'seq', last, 'barren', barren, 'moved', ARGV[2], 'why', ARGV[4])
redis.call('ZADD', K.open, ms(now_ms()), turn_id)
tell(t[4], fresh)
return { 'ok', tostring(last) }
