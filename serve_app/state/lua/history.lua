-- A page of a conversation. ARGV: 1 conversation_id, 2 limit, 3 before (0: the newest), 4 '1' if the caller waits for replicas
-- Returns {} or {owner, last seq, seq, message, seq, message …} or {'untold'}: its last message may not be kept yet, to be
-- asked for again by a caller that waits (law 8). Costs one MGET of `limit` keys, however long it is.
local c = redis.call('HMGET', K.conversation .. ARGV[1], 'owner', 'last_seq', 'deleted', 'open_turn')
if not c[1] or c[3] then return {} end
if ARGV[4] == '1' then
  barrier()
elseif REPLICAS > 0 and c[4] and redis.call('HEXISTS', K.turn .. c[4], 'untold') == 1 then
  return { 'untold' }
end
local last, before = tonumber(c[2]), tonumber(ARGV[3])
local to = last
if before > 0 then to = math.min(last, before - 1) end
local from, names = math.max(1, to - tonumber(ARGV[2]) + 1), {}
for seq = from, to do names[#names + 1] = K.message .. ARGV[1] .. ':' .. seq end
local out = { c[1], c[2] }
if #names > 0 then
  for i, message in ipairs(redis.call('MGET', unpack(names))) do
    if message then
      out[#out + 1] = tostring(from + i - 1)
      out[#out + 1] = message
    end
  end
end
return out
