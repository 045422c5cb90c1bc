-- Shared by all scripts of a pool: names of records, and the arithmetic of core/windows.py.
-- connections.py puts this file in front of each of the others; docs/redis.md lists the records.
--
-- KEYS[1] is `keyrot:v1:{pool}`. All other names start with it, so that they have its hash tag and
-- are in one cluster slot. KEYS[2] and following are the records that a script always uses; a few
-- more depend on what it reads. No record is named KEYS[1], so a slot whose records are on two nodes
-- refuses every script: TRYAGAIN.
--
-- A script that changes counts has an id. If its reply is lost, the caller runs it again with that id,
-- and it changes nothing a second time.
--
-- Times are epoch seconds of this server's clock (ADR 0008). Tests pass their own in ARGV[1]; the
-- library leaves it empty.

-- As in core/windows.py.
local GUARD_S, MINUTE_S, DAY_S, POLL_S = 1, 60, 86400, 0.1
local SHORT_DAY_S, HOUR_S = 23 * 3600, 3600
local AHEAD_S, CELL_S, MAX_PIECES, DELAY_TOLERANCE_S, LATER_S = 60, 2, 8, 2, 0.001
local PROBE_S = 2 -- how long a probe is the only request

local RECORD_TTL_S = 30 * DAY_S -- how long records without an end are kept
local REPLIES_TTL_S = 180 -- how long the replies of a minute are kept
local SETTLED = 'settled ' -- begins the reply of a lease that has ended
local MAX_COOLDOWNS = 64 -- cooldowns kept for one key, project or account

-- The fields of a quota record, a JSON array. Those from LEARNED_UNTIL on exist only if a limit was
-- reported or there is a window other than the minute; those from WINDOW_UNTIL on only in that case.
local MINUTE, REQUESTS, REQUESTS_NEXT, TOKENS, TOKENS_NEXT = 1, 2, 3, 4, 5
local DAY_END, DAY_REQUESTS = 6, 7
local FIRST_SECOND, LAST_SECOND = 8, 9
local PREVIOUS_FIRST_SECOND, PREVIOUS_LAST_SECOND = 10, 11
local PREVIOUS_REQUESTS, PREVIOUS_TOKENS = 12, 13
local LEARNED_UNTIL, LEARNED_RPM, LEARNED_TPM, LEARNED_RPD = 14, 15, 16, 17
local WINDOW_UNTIL, KIND, WINDOW = 18, 19, 20
local QUOTA_FORMAT = '%d' .. string.rep(',%d', PREVIOUS_TOKENS - 1)
local SLIDING, BUCKET, NO_MARK, BUCKET_MARK = 1, 2, -1, -2
-- The WINDOW of a SLIDING window: sent at, requests, tokens, and so on. Of a BUCKET: these fields.
local AT, USED_REQUESTS, USED_TOKENS, RPM_RATE, TPM_RATE = 1, 2, 3, 4, 5
-- The fields of a health record, a JSON array; LAST_ERROR is absent without a failure. VALUE is the
-- fingerprint of the value that the key was last used with.
local LAST_USED, SUCCESSES, ERRORS, VALUE, LAST_ERROR = 1, 2, 3, 4, 5

local function full_name(name)
  return KEYS[1] .. ':' .. name
end

local function full_quota_name(project, bucket) -- the length separates a:b, c from a, b:c
  return full_name('quota:' .. #project .. ':' .. project .. ':' .. bucket)
end

-- Return the time, also as text: formatting a number in full precision takes as long as a SET.
local function clock(test_clock)
  local text = test_clock
  if test_clock == '' then
    local time = redis.call('TIME')
    text = string.format('%s.%06d', time[1], time[2])
  end
  return tonumber(text), text
end

local function format_exact(seconds)
  return string.format('%.17g', seconds)
end

local function parse_seconds(text)
  return text == 'inf' and math.huge or tonumber(text)
end

-- Return the text of a record; nil if there is none, or if it is none.
local function read_text(name)
  return redis.call('MGET', name)[1] or nil
end

-- Keep the reply of a lease. There is a hash per process and minute, so that a slot has few records.
local function save_reply(name, id, text)
  redis.call('HSET', name, id, text)
  if redis.call('HLEN', name) == 1 then
    redis.call('PEXPIRE', name, REPLIES_TTL_S * 1000)
  end
end

local function is_settled(reply)
  return string.sub(reply, 1, #SETTLED) == SETTLED
end

-- SET fails when memory is exhausted, so it should be the first write of a script.
local function save(name, text, for_s)
  redis.call('SET', name, text, 'PX', math.ceil(math.max(for_s, 1) * 1000))
end

-- The epoch ----------------------------------------------------------------------------------------
-- One record: the id of the data set, and the number of changes in it: leases, costs, reports. If
-- this server went back to older data (a restored snapshot, a replica that lagged), a new id begins;
-- the record then also has the id of the older data and its number of changes.

local ID, CHANGES, KEPT_ID, KEPT_CHANGES = 1, 2, 3, 4

local function read_epoch(text)
  local id, changes, kept_id, kept_changes = string.match(text or '', '^(%S+) (%d+) (%S+) (%d+)$')
  return id and { id, tonumber(changes), kept_id, tonumber(kept_changes) }
end

local function save_epoch(name, epoch)
  save(name, string.format('%s %d %s %d', unpack(epoch)), RECORD_TTL_S)
end

-- Return the epoch; a new one if there is none, or if the data is older than what the caller knows:
-- the id of its epoch, the highest number of changes in it, and the ids of earlier epochs.
local function current_epoch(name, text, known, seen, earlier, new_id)
  local epoch = read_epoch(text)
  local is_older = epoch and ((epoch[ID] == known and epoch[CHANGES] < tonumber(seen))
    or string.find(earlier, ' ' .. epoch[ID] .. ' ', 1, true))
  if epoch and not is_older then
    return epoch
  end
  epoch = { new_id, 0, epoch and epoch[ID] or '-', epoch and epoch[CHANGES] or 0 }
  save_epoch(name, epoch)
  return epoch
end

-- Count a change; return the epoch, nil if there is none.
local function count_change(name, text)
  local epoch = read_epoch(text)
  if epoch then
    epoch[CHANGES] = epoch[CHANGES] + 1
    save_epoch(name, epoch)
  end
  return epoch
end

-- Quotas ---------------------------------------------------------------------------------------

local function read_quota(text)
  local q = text and cjson.decode(text) or {}
  if #q < PREVIOUS_TOKENS then -- missing, or of an older version
    q = { -1, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, 0, 0 }
  elseif q[LEARNED_UNTIL] == 0 then
    q[LEARNED_UNTIL] = nil
  end
  return q
end

local function exceeds(used, cost, limit)
  return used + cost > limit and (used > 0 or limit <= 0)
end

local function next_midnight(now, text)
  local midnights = cjson.decode(text)
  for _, moment in ipairs(midnights) do
    if moment > now then
      return moment
    end
  end
  local last = midnights[#midnights] -- the calling host's clock is days behind this one
  return last + (math.floor((now - last) / DAY_S) + 1) * DAY_S
end

-- Return when the Pacific day ends; one too far in the future comes from a clock that was set back.
local function current_day_end(day_end, now, midnights)
  if now >= day_end or day_end - now > SHORT_DAY_S then
    local midnight = next_midnight(now, midnights)
    if now >= day_end or day_end - midnight > SHORT_DAY_S - HOUR_S then
      return midnight
    end
  end
  return day_end
end

-- Windows other than the wall-clock minute (core/windows.py).

local function set_window(q, kind, window, now)
  q[KIND], q[WINDOW], q[WINDOW_UNTIL] = kind, window, now + DAY_S
end

-- Return what a BUCKET has used and not refilled; field: USED_REQUESTS or USED_TOKENS.
local function not_refilled(window, field, now)
  local used, per_minute = window[field], window[field + 2]
  local back = math.max(now - window[AT], 0) * (per_minute > 0 and per_minute or used) / MINUTE_S
  return math.max(used - back, 0)
end

-- Return the requests and tokens that count now; call advance first.
local function used_now(q, now)
  local window = q[WINDOW]
  if q[KIND] == SLIDING then
    local requests, tokens = 0, 0
    for i = 1, #window, 3 do
      requests, tokens = requests + window[i + 1], tokens + window[i + 2]
    end
    return requests, tokens
  elseif q[KIND] == BUCKET then
    local requests = not_refilled(window, USED_REQUESTS, now)
    local tokens = not_refilled(window, USED_TOKENS, now)
    return math.ceil(requests - 1e-6), math.ceil(tokens - 1e-6)
  end
  return q[REQUESTS], q[TOKENS]
end

-- Drop what has left the window, and what is in the future.
local function advance_window(q, now)
  local window = q[WINDOW]
  if q[KIND] == SLIDING then
    local kept = {}
    for i = 1, #window, 3 do
      if now - MINUTE_S - GUARD_S < window[i] and window[i] <= now + AHEAD_S then
        local n = #kept
        kept[n + 1], kept[n + 2], kept[n + 3] = window[i], window[i + 1], window[i + 2]
      end
    end
    q[WINDOW] = kept
  elseif window[AT] > now + AHEAD_S then
    window[AT], window[USED_REQUESTS], window[USED_TOKENS] = now, 0, 0
  end
end

local function burst_capacity(limit)
  return limit - limit * GUARD_S / MINUTE_S
end

-- Return until when there is no capacity for a cost; unit: 1 for requests, 2 for tokens.
local function window_blocked_until(q, now, unit, cost, limit)
  local window = q[WINDOW]
  if q[KIND] == SLIDING then
    local requests, tokens = used_now(q, now)
    local used = unit == 1 and requests or tokens
    if not exceeds(used, cost, limit) then
      return nil
    end
    for i = 1, #window, 3 do
      used = used - window[i + unit]
      if not exceeds(used, cost, limit) then
        return window[i] + MINUTE_S + GUARD_S
      end
    end
    return now + MINUTE_S + GUARD_S -- a limit of 0 never has capacity
  end
  local used = not_refilled(window, unit + 1, now)
  if limit <= 0 then
    return used + cost > 0 and now + MINUTE_S or nil
  end
  local over = used + cost - burst_capacity(limit)
  if over > 0 and used > 0 then
    return math.max(now, window[AT]) + math.min(over, used) * MINUTE_S / limit + LATER_S
  end
end

local function reserve_in_window(q, now, requests, tokens, rpm, tpm)
  local window = q[WINDOW]
  if q[KIND] == BUCKET then
    window[USED_REQUESTS] = not_refilled(window, USED_REQUESTS, now) + requests
    window[USED_TOKENS] = not_refilled(window, USED_TOKENS, now) + tokens
    window[AT] = now
    window[RPM_RATE], window[TPM_RATE] = rpm or window[RPM_RATE], tpm or window[TPM_RATE]
    return BUCKET_MARK
  elseif requests == 0 and tokens == 0 then
    return NO_MARK
  end
  local n, sent = #window, now
  if n > 0 and window[n - 2] > sent then
    sent = window[n - 2]
  end
  if n > 0 and math.floor(window[n - 2] / CELL_S) == math.floor(sent / CELL_S) then
    window[n - 2], window[n - 1], window[n] = sent, window[n - 1] + requests, window[n] + tokens
  else
    window[n + 1], window[n + 2], window[n + 3] = sent, requests, tokens
  end
  return math.floor(sent / CELL_S)
end

local function adjust_window(q, mark, requests, tokens)
  local window = q[WINDOW]
  if q[KIND] == BUCKET and mark == BUCKET_MARK then
    window[USED_REQUESTS] = math.max(window[USED_REQUESTS] + requests, 0)
    window[USED_TOKENS] = math.max(window[USED_TOKENS] + tokens, 0)
  elseif q[KIND] == SLIDING then
    for i = 1, #window, 3 do
      if math.floor(window[i] / CELL_S) == mark then
        window[i + 1] = math.max(window[i + 1] + requests, 0)
        window[i + 2] = math.max(window[i + 2] + tokens, 0)
        return
      end
    end
  end
end

-- Start the minute of now; return whether now is within the guard of a boundary.
local function advance_minute(q, now)
  local first = math.floor((now - GUARD_S) / 60)
  if first > q[MINUTE] or first < q[MINUTE] - 1 then
    local kept = first == q[MINUTE] + 1
    q[PREVIOUS_FIRST_SECOND] = kept and q[FIRST_SECOND] or -1
    q[PREVIOUS_LAST_SECOND] = kept and q[LAST_SECOND] or -1
    q[PREVIOUS_REQUESTS] = kept and q[REQUESTS] - q[REQUESTS_NEXT] or 0
    q[PREVIOUS_TOKENS] = kept and q[TOKENS] - q[TOKENS_NEXT] or 0
    q[REQUESTS], q[REQUESTS_NEXT] = kept and q[REQUESTS_NEXT] or 0, 0
    q[TOKENS], q[TOKENS_NEXT] = kept and q[TOKENS_NEXT] or 0, 0
    local second = (q[REQUESTS] ~= 0 or q[TOKENS] ~= 0) and 0 or -1
    q[FIRST_SECOND], q[LAST_SECOND], q[MINUTE] = second, second, first
  end
  if q[KIND] then
    q[WINDOW_UNTIL] = math.min(q[WINDOW_UNTIL], now + DAY_S)
    if now >= q[WINDOW_UNTIL] then
      q[WINDOW_UNTIL], q[KIND], q[WINDOW] = nil, nil, nil
    else
      advance_window(q, now)
    end
  end
  return math.floor((now + GUARD_S) / 60) > q[MINUTE]
end

-- Start the windows of now; times too far in the future come from a clock that was set back.
local function advance(q, now, midnights)
  local near_boundary = advance_minute(q, now)
  local day_end = current_day_end(q[DAY_END], now, midnights)
  if day_end ~= q[DAY_END] then
    q[DAY_END], q[DAY_REQUESTS] = day_end, 0
  end
  if q[LEARNED_UNTIL] then
    q[LEARNED_UNTIL] = math.min(q[LEARNED_UNTIL], now + DAY_S)
    if now >= q[LEARNED_UNTIL] then
      q[LEARNED_UNTIL] = nil
    end
  end
  return near_boundary
end

-- Count a request in all windows; return the mark by which adjust_window finds it.
local function reserve(q, now, near_boundary, requests, tokens, rpm, tpm)
  q[REQUESTS], q[TOKENS] = q[REQUESTS] + requests, q[TOKENS] + tokens
  if near_boundary then
    q[REQUESTS_NEXT], q[TOKENS_NEXT] = q[REQUESTS_NEXT] + requests, q[TOKENS_NEXT] + tokens
  end
  q[LAST_SECOND] = math.floor(now) - q[MINUTE] * 60
  if q[FIRST_SECOND] < 0 then
    q[FIRST_SECOND] = q[LAST_SECOND]
  end
  return q[KIND] and reserve_in_window(q, now, requests, tokens, rpm, tpm) or NO_MARK
end

local function save_quota(name, q, now)
  local text = string.format(QUOTA_FORMAT, unpack(q, MINUTE, PREVIOUS_TOKENS))
  -- A request in the last second of a day may count in the next minute too.
  local ends = math.max(q[DAY_END] + 60 + GUARD_S, q[LEARNED_UNTIL] or 0, q[WINDOW_UNTIL] or 0)
  if q[LEARNED_UNTIL] then
    text = text .. string.format(',%.17g,%d,%d,%d', unpack(q, LEARNED_UNTIL, LEARNED_RPD))
  elseif q[KIND] then
    text = text .. ',0,-1,-1,-1'
  end
  if q[KIND] then
    local window = {}
    for i, number in ipairs(q[WINDOW]) do
      window[i] = format_exact(number)
    end
    local numbers = table.concat(window, ',')
    text = text .. string.format(',%s,%d,[%s]', format_exact(q[WINDOW_UNTIL]), q[KIND], numbers)
  end
  save(name, '[' .. text .. ']', ends - now)
end

-- Record the buckets of a pool, for snapshots; quota records live for less than two days.
local function record_bucket(bucket, now)
  local name = full_name('buckets')
  redis.call('ZREMRANGEBYSCORE', name, '-inf', format_exact(now))
  redis.call('ZADD', name, format_exact(now + 2 * DAY_S), bucket)
  redis.call('EXPIRE', name, 2 * DAY_S)
end

-- Budgets (core/spending.py) -----------------------------------------------------------------------
-- One record per project with a budget, a JSON array: end of the day, spent, the highest cost of a
-- request by bucket and service tier, and by lease in flight {reserved, record of its key}. Amounts
-- are billionths of a dollar.

local SPENDING_DAY_END, SPENT, HIGHEST, RESERVED = 1, 2, 3, 4
local BUCKETS_KEPT = 64

local function read_spending(project, now, midnights)
  local text = redis.call('GET', full_name('spending:' .. project))
  local s = text and cjson.decode(text) or { 0, 0, {}, {} }
  local day_end = current_day_end(s[SPENDING_DAY_END], now, midnights)
  if day_end ~= s[SPENDING_DAY_END] then
    s[SPENDING_DAY_END], s[SPENT], s[HIGHEST] = day_end, 0, {}
  end
  return s
end

local function save_spending(project, s, now)
  local highest, reserved = cjson.encode(s[HIGHEST]), cjson.encode(s[RESERVED])
  local text = string.format('[%d,%d,%s,%s]', s[SPENDING_DAY_END], s[SPENT], highest, reserved)
  save(full_name('spending:' .. project), text, s[SPENDING_DAY_END] - now + MINUTE_S)
end

-- Return what a request may cost.
local function expected_cost(s, bucket, input_cost, longest_cost)
  local highest = s[HIGHEST][bucket]
  return highest and input_cost + highest or longest_cost
end

-- Return why a budget does not allow a request; drop reservations of leases that have expired.
local function budget_block(s, budget, expected, now)
  if s[SPENT] >= budget then
    return 'usd', s[SPENDING_DAY_END], false
  end
  local in_flight, reserved = 0, 0
  for lease, one in pairs(s[RESERVED]) do
    local expires = redis.call('ZSCORE', full_name('lease:' .. one[2]), lease)
    if expires and tonumber(expires) > now then
      in_flight, reserved = in_flight + 1, reserved + one[1]
    else
      s[RESERVED][lease] = nil
    end
  end
  if in_flight > 0 and s[SPENT] + reserved + expected > budget then
    return 'usd_reserved', now + POLL_S, true
  end
end

-- End the reservation of a lease and count its cost, nil if unknown.
local function settle_spending(s, lease, bucket, cost, served)
  s[RESERVED][lease] = nil
  s[SPENT] = s[SPENT] + (cost or 0)
  if not cost and not served then
    return
  end
  local known, buckets = s[HIGHEST][bucket], 0
  if not known then
    for _ in pairs(s[HIGHEST]) do
      buckets = buckets + 1
    end
    if buckets >= BUCKETS_KEPT then
      s[HIGHEST] = {}
    end
  end
  s[HIGHEST][bucket] = math.max(known or 0, cost or 0)
end

-- Cooldowns --------------------------------------------------------------------------------------
-- Each key (cooldown:key:), project (cooldown:project:) and billing account (cooldown:billing:) has
-- one record of all its cooldowns: a JSON object from the scope to {until, length, strikes, failure,
-- waitable, probe, probe_until}; strikes are the consecutive failures.

-- Return the scopes that block a key, the widest first: index of the record, field of the record.
local function scopes(bucket, verb)
  local all = { { 1, 'billing' }, { 2, 'project' }, { 3, 'key' } }
  all[4], all[5] = { 2, 'project_model:' .. bucket }, { 3, 'key_model:' .. bucket }
  all[6] = { 3, 'key_verb:' .. verb }
  if verb == 'cachedContents' then
    all[7] = { 2, 'project_cache' }
  end
  return all
end

local function read_cooldowns(text)
  return text and cjson.decode(text) or {}
end

-- Return whether the clock was set back since the cooldown was recorded.
local function is_in_future(cooldown, now)
  return parse_seconds(cooldown['until']) > now + parse_seconds(cooldown.length or 'inf') + AHEAD_S
end

local function save_cooldowns(name, record, now)
  local count, soonest, last = 0, nil, now
  for scope, cooldown in pairs(record) do
    local ends = parse_seconds(cooldown['until'])
    count, last = count + 1, math.max(last, ends)
    if not soonest or ends < parse_seconds(record[soonest]['until']) then
      soonest = scope
    end
  end
  if count > MAX_COOLDOWNS then
    record[soonest] = nil
  end
  if count == 0 then
    redis.call('DEL', name)
  else
    save(name, cjson.encode(record), math.min(last - now + DAY_S, RECORD_TTL_S))
  end
end

-- Health -----------------------------------------------------------------------------------------

local function read_health(text)
  return text and cjson.decode(text) or { 0, 0, 0, '' }
end

-- A new lease passes the time of use as text, and the name of the key's cooldown record, which ends
-- with the fingerprint of the key's value.
local function save_health(name, health, used_at, cooldown_record)
  used_at = used_at or format_exact(health[LAST_USED])
  if cooldown_record then
    health[VALUE] = string.match(cooldown_record, '@(%x+)$') or ''
  end
  local text = string.format('[%s,%d,%d,"%s"', used_at, unpack(health, SUCCESSES, VALUE))
  if health[LAST_ERROR] then
    text = text .. ',' .. cjson.encode(health[LAST_ERROR])
  end
  save(name, text .. ']', RECORD_TTL_S)
end
