-- Shared by all scripts. Keys are built here because a script may choose the conversation itself; Aurora keeps its
-- state in one Redis primary with replicas, not in a Redis Cluster, so undeclared keys are safe.
local function ms(n) return string.format('%.0f', n) end
local function log_key(turn_id) return K.turn .. turn_id .. ':log' end
local function lease(turn_id, now) redis.call('ZADD', K.open, ms(now + LEASE_MS), turn_id) end

-- Whether a turn has not ended: `closing` has its end stored, but nobody may be shown it yet (law 8).
local function is_open(state) return state == 'open' or state == 'closing' end

-- A write that changes nothing. WAIT waits for what its connection wrote last: with this, what comes again after a lost
-- reply, or is attached to, is waited for like the first time (law 8).
local function barrier()
  if REPLICAS > 0 then redis.call('SET', K.barrier, '1') end
end

-- Tell every device of a client. `events` are encoded JSON objects.
local function tell(client_id, events)
  if #events > 0 then
    redis.call('PUBLISH', K.client_channel .. client_id, '[' .. table.concat(events, ',') .. ']')
  end
end

-- Add pieces to a log: ARGV[at] is the first seq, then pairs (event, token ids). Returns the events that were new and
-- the last seq, or nil and the seq that is expected. A piece that is there already is skipped: appending twice has the
-- effect of appending once.
local function add_pieces(turn_id, last, argv, at)
  local seq, fresh = tonumber(argv[at]), {}
  if seq > last + 1 then return nil, last + 1 end
  for i = at + 1, #argv, 2 do
    if seq > last then
      if argv[i + 1] == '' then
        redis.call('XADD', log_key(turn_id), seq .. '-0', 'e', argv[i])
      else
        redis.call('XADD', log_key(turn_id), seq .. '-0', 'e', argv[i], 'i', argv[i + 1])
      end
      fresh[#fresh + 1] = argv[i]
      last = seq
    end
    seq = seq + 1
  end
  return fresh, last
end

-- The log from an entry id on, as a flat list: event, token ids, event, token ids …
local function entries(turn_id, from)
  local out = {}
  for _, entry in ipairs(redis.call('XRANGE', log_key(turn_id), from, '+')) do
    out[#out + 1] = entry[2][2]
    out[#out + 1] = entry[2][4] or ''
  end
  return out
end
