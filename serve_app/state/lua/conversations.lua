-- A client's conversations, last used first. ARGV: 1 client_id, 2 limit, 3 offset
-- Returns {total, then for each: id, personality, title, created, updated, last_seq}
local key = K.conversations .. ARGV[1]
local out = { tostring(redis.call('ZCARD', key)) }
for _, id in ipairs(redis.call('ZREVRANGE', key, tonumber(ARGV[3]), tonumber(ARGV[3]) + tonumber(ARGV[2]) - 1)) do
  local c = redis.call('HMGET', K.conversation .. id, 'personality', 'title', 'created', 'updated', 'last_seq')
  for _, v in ipairs({ id, c[1] or '', c[2] or '', c[3] or '', c[4] or '', c[5] or '0' }) do out[#out + 1] = v end
end
return out
