-- Hand turns whose lease has lapsed to the caller, each to exactly one (law 7).
-- ARGV: 1 token of this sweep, 2 how many at most
-- Returns the ms until the next lease lapses ('' where no turn is open), then a flat list:
-- turn_id, token, personality, attempt, barren, stopping, overdue, pool, closing …
-- The token is a new dispatch token; of a turn that is closing, it is that of whoever closed it, for `announce`.
-- A lost reply heals by itself: the turns are due again one lease later. With replicas, a caller that was handed turns waits
-- for what was written before it acts on them: their messages and ends are kept from then on (law 8).
local function until_next_lapse(now)
  local first = redis.call('ZRANGE', K.open, 0, 0, 'WITHSCORES')
  return first[2] and ms(math.max(0, tonumber(first[2]) - now)) or ''
end

local now, last = now_ms(), tonumber(redis.call('GET', K.sweep) or '0')
redis.call('SET', K.sweep, ms(now))
if last == 0 or last > now or now - last > SWEEP_GAP_MS then
  -- Redis was away, frozen, or has another clock now: nobody could renew. Everyone gets the time to, and what passed
  -- counts against no deadline.
  local open = redis.call('ZRANGE', K.open, 0, -1, 'WITHSCORES')
  for i = 1, #open, 2 do
    local id, ends = open[i], tonumber(open[i + 1])
    redis.call('ZADD', K.open, ms(math.max(now + GRACE_MS, math.min(ends, now + LEASE_MS))), id)
    local began = tonumber(redis.call('HGET', K.turn .. id, 'began') or '')
    -- Where the clock went back, a turn that began by the new one has its deadline by the new one already.
    if last > 0 and began and (now >= last or began > now) then
      redis.call('HINCRBY', K.turn .. id, 'deadline', ms(now - last))
    end
  end
  return { until_next_lapse(now) }
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.open, '(' .. ms(now + LEASE_MS), '+inf')) do lease(id, now) end

local out = { '' }
for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.open, '-inf', ms(now), 'LIMIT', 0, tonumber(ARGV[2]))) do
  local key = K.turn .. id
  local t = redis.call('HMGET', key, 'state', 'personality', 'attempt', 'barren', 'stopping', 'deadline', 'pool', 'token')
  if not is_open(t[1]) then
    redis.call('ZREM', K.open, id)
  else
    local token = t[8]
    if t[1] == 'open' then
      token = ARGV[1] .. '-' .. id
      redis.call('HSET', key, 'token', token)
    end
    lease(id, now)
    local due = { id, token, t[2], t[3], t[4], t[5] or '', tonumber(t[6]) < now and '1' or '', t[7] or '',
      t[1] == 'closing' and '1' or '' }
    for _, v in ipairs(due) do out[#out + 1] = v end
  end
end
out[1] = until_next_lapse(now)
return out
