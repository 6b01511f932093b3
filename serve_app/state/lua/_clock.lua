-- Redis's own clock in milliseconds: leases never use a node's clock (law 7).
local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end
