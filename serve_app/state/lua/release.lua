-- Give a turn back from a run whose node is leaving, or whose engine failed, with its last pieces (laws 3, 5, 7).
-- ARGV: 1 turn_id, 2 the run's token, 3 the dispatch token it was claimed with, 4 why: 'moved' (the node is leaving) or another
--       word, 5 the failure ('' for none), kept for whoever ends the turn, 6 seq of the first piece, then pairs: event, token ids
-- Returns {'ok', last seq} | {'expect', seq} | {'superseded'} | {'gone'}. Whoever dispatched the run may dispatch it again with
-- the same token, or end it; else a sweep finds it: at once where the node is leaving, as the router may be, too, and one lease
-- later where the engine failed, so that no other router has it tried there again. That a node leaves is no fault of the turn:
-- such a run does not count as barren. Idempotent by token.
local turn_id, key = ARGV[1], K.turn .. ARGV[1]
local t = redis.call('HMGET', key, 'state', 'token', 'seq', 'client_id', 'barren', 'moved')
if t[1] ~= 'open' then return { 'gone' } end
if t[6] == ARGV[2] then return { 'ok', t[3] } end
if t[2] ~= ARGV[2] then return { 'superseded' } end
local fresh, last = add_pieces(turn_id, tonumber(t[3]), ARGV, 6)
if not fresh then return { 'expect', tostring(last) } end
local barren, now, moved = tonumber(t[5]), now_ms(), ARGV[4] == 'moved'
if #fresh > 0 then barren = 0 elseif moved then barren = math.max(0, barren - 1) end
redis.call('HSET', key, 'token', ARGV[3], 'seq', last, 'barren', barren, 'moved', ARGV[2], 'why', ARGV[4], 'failure', ARGV[5])
if moved then redis.call('ZADD', K.open, ms(now), turn_id) else lease(turn_id, now) end
tell(t[4], fresh)
return { 'ok', tostring(last) }
