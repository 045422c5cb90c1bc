-- Shared by all scripts of a pool: names of records, and the arithmetic of core/windows.py.
-- scripts.py puts this file in front of each of the others; docs/redis.md lists the records.
--
-- KEYS are the same for each script: KEYS[1] is `keyrot:v1:{pool}`, with which all names start, so that
-- they have its hash tag and are in one cluster slot; KEYS[2] is the record of the epoch. No record is
-- named KEYS[1], so a slot whose records are on two nodes refuses every script: TRYAGAIN.
--
-- A script that changes counts has an id. If its reply is lost, the caller runs it again with that id,
-- and it changes nothing a second time.
--
-- Times are epoch seconds of this server's clock (ADR 0008). Tests pass their own in ARGV[1]; the
-- library leaves it empty.

-- The constants and the numbers of fields come from Python; scripts.py puts them in front.
--
-- Each script returns an array that begins with the number of records it has dropped, because they
-- could not be read: another tool's, a broken copy, another version. They count as missing.

local dropped = 0

local function drop(name)
  redis.call('DEL', name)
  dropped = dropped + 1
end

-- Return a record that is JSON; nil if there is none, or if it cannot be read: then it is dropped.
local function decode(name, text, is_readable)
  local decoded, record = pcall(cjson.decode, text or 'null')
  if decoded and type(record) == 'table' and is_readable(record) then
    return record
  elseif text then
    drop(name)
  end
end

-- Run a command on a record; drop the record first if something else has written it.
local function call(command, name, ...)
  local reply = redis.pcall(command, name, ...)
  if type(reply) ~= 'table' or not reply.err then
    return reply
  elseif string.find(reply.err, 'WRONGTYPE', 1, true)
    or string.find(reply.err, 'not an integer', 1, true) then
    drop(name)
  end
  return redis.call(command, name, ...)
end

local function are_numbers(list, first, last)
  for i = first, last do
    if type(list[i]) ~= 'number' then
      return false
    end
  end
  return true
end

local function full_name(name)
  return KEYS[1] .. ':' .. name
end

local function full_quota_name(project, bucket) -- the length separates a:b, c from a, b:c
  return full_name('quota:' .. #project .. ':' .. project .. ':' .. bucket)
end

local function cooldown_names(account, project, record)
  return {
    full_name('cooldown:billing:' .. account), full_name('cooldown:project:' .. project),
    full_name('cooldown:key:' .. record),
  }
end

-- Return the name of the record with the reply of a script: its id is `<process>.<minute>:<number>`.
local function replies_name(id)
  return full_name('replies:' .. string.match(id, '^[^:]*'))
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
  call('HSET', name, id, text)
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

-- A quota record is binary, since a call reads many: its numbers are doubles. Those from LEARNED_UNTIL
-- on exist only if a limit was reported.
local NUMBER = #struct.pack('d', 0)

local function read_quota(name, text)
  local size = text and #text
  if size == DAY_REQUESTS * NUMBER then
    local q = { struct.unpack(QUOTA_FORMAT, text) }
    q[DAY_REQUESTS + 1] = nil -- the end of what was unpacked
    return q
  elseif size == LEARNED_RPD * NUMBER then
    return { struct.unpack(LEARNED_FORMAT, text) }
  elseif text then
    drop(name)
  end
  return { -1, 0, 0, 0, 0, 0, 0 }
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

-- Return whether the day has not ended, and ends within the length of any day.
local function is_in_day(day_end, now)
  return now < day_end and day_end - now <= SHORT_DAY_S
end

-- Return when the Pacific day ends; one too far in the future comes from a clock that was set back.
local function current_day_end(day_end, now, midnights)
  if not is_in_day(day_end, now) then
    local midnight = next_midnight(now, midnights)
    if now >= day_end or day_end - midnight > SHORT_DAY_S - HOUR_S then
      return midnight
    end
  end
  return day_end
end

-- Start the windows of now; return whether now is within the guard of a minute's boundary. Times too
-- far in the future come from a clock that was set back.
local function advance(q, now, midnights)
  local first, minute = math.floor((now - GUARD_S) / 60), q[MINUTE]
  if first ~= minute and first ~= minute - 1 then
    local kept = first == minute + 1
    q[REQUESTS], q[REQUESTS_NEXT] = kept and q[REQUESTS_NEXT] or 0, 0
    q[TOKENS], q[TOKENS_NEXT] = kept and q[TOKENS_NEXT] or 0, 0
    q[MINUTE] = first
  end
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
  return math.floor((now + GUARD_S) / 60) > q[MINUTE]
end

-- Add to the counts of the minute, and to those of the next one if a request counts in both.
local function add(q, near_boundary, requests, tokens)
  q[REQUESTS], q[TOKENS] = math.max(q[REQUESTS] + requests, 0), math.max(q[TOKENS] + tokens, 0)
  if near_boundary then
    q[REQUESTS_NEXT] = math.max(q[REQUESTS_NEXT] + requests, 0)
    q[TOKENS_NEXT] = math.max(q[TOKENS_NEXT] + tokens, 0)
  end
end

-- Change the counts of a reservation in the windows that are still kept; not below 0, since this
-- server may have lost the reservation.
local function adjust(q, minute, near_boundary, day_end, requests, tokens)
  if minute == q[MINUTE] then
    add(q, near_boundary, requests, tokens)
  elseif near_boundary and minute + 1 == q[MINUTE] then
    add(q, false, requests, tokens)
  end
  if day_end == q[DAY_END] then
    q[DAY_REQUESTS] = math.max(q[DAY_REQUESTS] + requests, 0)
  end
end

-- Drop the learned limits that a single successful request exceeds: they are wrong, or were raised.
-- Return whether there were any.
local function drop_exceeded_limits(q, requests, tokens)
  if not q[LEARNED_UNTIL] then
    return false
  end
  local exceeded = false
  for field, size in pairs({ [LEARNED_RPM] = requests, [LEARNED_TPM] = tokens, [LEARNED_RPD] = requests }) do
    if q[field] >= 0 and size > q[field] then
      q[field], exceeded = -1, true
    end
  end
  if q[LEARNED_RPM] < 0 and q[LEARNED_TPM] < 0 and q[LEARNED_RPD] < 0 then
    q[LEARNED_UNTIL] = nil
  end
  return exceeded
end

local function save_quota(name, q, now)
  local text
  if q[LEARNED_UNTIL] then
    text = struct.pack(LEARNED_FORMAT, unpack(q, MINUTE, LEARNED_RPD))
  else
    text = struct.pack(QUOTA_FORMAT, unpack(q, MINUTE, DAY_REQUESTS))
  end
  -- A request in the last second of a day may count in the next minute too.
  save(name, text, math.max(q[DAY_END] + 60 + GUARD_S, q[LEARNED_UNTIL] or 0) - now)
end

-- Record the buckets of a pool, for snapshots; quota records live for less than two days.
local function record_bucket(bucket, now)
  local name = full_name('buckets')
  call('ZREMRANGEBYSCORE', name, '-inf', format_exact(now))
  redis.call('ZADD', name, format_exact(now + 2 * DAY_S), bucket)
  redis.call('EXPIRE', name, 2 * DAY_S)
end

-- Budgets (core/spending.py) -----------------------------------------------------------------------
-- One record per project with a budget, a JSON array: end of the day, spent, the highest cost of a
-- request by bucket and service tier, and by lease in flight {reserved, record of its key}. Amounts
-- are billionths of a dollar.

local function is_spending(s)
  if #s ~= RESERVED or not are_numbers(s, SPENDING_DAY_END, SPENT)
    or type(s[HIGHEST]) ~= 'table' or type(s[RESERVED]) ~= 'table' then
    return false
  end
  for _, highest in pairs(s[HIGHEST]) do
    if type(highest) ~= 'number' then
      return false
    end
  end
  for _, one in pairs(s[RESERVED]) do
    if type(one) ~= 'table' or type(one[1]) ~= 'number' or type(one[2]) ~= 'string' then
      return false
    end
  end
  return true
end

local function read_spending(project, now, midnights)
  local name = full_name('spending:' .. project)
  local s = decode(name, read_text(name), is_spending) or { 0, 0, {}, {} }
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
    local expires = call('ZSCORE', full_name('lease:' .. one[2]), lease)
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

local function are_cooldowns(record)
  for scope, cooldown in pairs(record) do
    if type(scope) ~= 'string' or type(cooldown) ~= 'table'
      or type(cooldown['until']) ~= 'string' or not parse_seconds(cooldown['until'])
      or type(cooldown.strikes) ~= 'number' or type(cooldown.failure) ~= 'string'
      or type(cooldown.waitable) ~= 'boolean' or type(cooldown.probe) ~= 'string'
      or not tonumber(cooldown.probe_until) then
      return false
    end
  end
  return true
end

local function read_cooldowns(name, text)
  return decode(name, text, are_cooldowns) or {}
end

-- Return whether the clock was set back since the cooldown was recorded.
local function is_in_future(cooldown, now)
  return parse_seconds(cooldown['until']) > now + parse_seconds(cooldown.length or 'inf') + AHEAD_S
end

-- End the cooldowns that were over when a successful lease was granted; return the changed records.
local function clear_cooldowns(cooldowns, active_scopes, granted, now)
  local changed = {}
  for _, scope in ipairs(active_scopes) do
    local record, field = cooldowns[scope[1]], scope[2]
    local cooldown = record[field]
    if cooldown and (parse_seconds(cooldown['until']) <= granted or is_in_future(cooldown, now)) then
      record[field], changed[scope[1]] = nil, true
    end
  end
  return changed
end

-- The record `cooling` has the names of all cooldown records: without it, none need to be read.
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
  local cooling = full_name('cooling')
  if count == 0 then
    redis.call('DEL', name)
    call('ZREM', cooling, name)
    return
  end
  local for_s = math.min(last - now + DAY_S, RECORD_TTL_S)
  save(name, cjson.encode(record), for_s)
  local moment = clock('') -- by which records expire
  call('ZADD', cooling, format_exact(moment + for_s), name)
  call('ZREMRANGEBYSCORE', cooling, '-inf', format_exact(moment))
  redis.call('EXPIRE', cooling, RECORD_TTL_S)
end

-- Health -----------------------------------------------------------------------------------------

-- Count the end of a request of a key; field: successes or errors.
local function count_end(key, field)
  local name = full_name('health:' .. key)
  if call('HINCRBY', name, field, 1) == 1 then
    redis.call('EXPIRE', name, RECORD_TTL_S)
  end
  return name
end
