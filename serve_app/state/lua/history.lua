-- A page of a conversation. ARGV: 1 conversation_id, 2 limit, 3 before (0: the newest)
-- Returns {} or {owner, last seq, seq, message, seq, message …}. Costs one MGET of `limit` keys, however long it is.
local c = redis.call('HMGET', K.conversation .. ARGV[1], 'owner', 'last_seq', 'deleted')
if not c[1] or c[3] then return {} end
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
