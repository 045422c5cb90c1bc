-- The decisions of core/ledger.py, on records in Redis. One run of this script is one decision,
-- atomic for all processes of a pool. A run has four steps; the last three are at the end of this
-- file, under "The run":
--
-- 1. The time. The server's clock decides, and the first process of a day says when the day ends.
-- 2. The quotas of all calls that the run is about are read, in one command. Other records are read
--    when they are needed, and each once.
-- 3. Calls that have ended are settled, in their order. Then a key is chosen for the call that wants
--    one, so that it has what the others gave back. Both change records in the memory of this run
--    (`save`), where each sees what was changed before.
-- 4. What was changed is written.
--
-- Redis takes back nothing of a script that fails. That is why all counts, limits and cooldowns are
-- written at the end: a record that cannot be read ends the run, and nothing of them is changed. Only
-- the end of the day, and who owns a stored thing, are written before.
--
-- Most calls read and write the quotas of keys, and their health, and most pools have nothing else.
-- So one EXISTS says whether there is anything in the other tables (`has_seldom`).
--
-- What each part is called in core/ledger.py and core/windows.py:
--
--   Ledger.acquire, _judge                           acquire: which key; grant: what is reserved for it
--   Ledger.buckets, _limits, _is_steady              buckets_of, limits_of
--   QuotaWindows.advance, adjust, reserve            advance, adjust, the beginning of grant
--   QuotaWindows.blocked_by, _drained                full_window, drained
--   QuotaWindows.kept, held_back                     held_back
--   Ledger._part, _terms_block                       read_part, terms_block
--   Spending.advance, expected, blocked_by           read_purse, expected_cost, budget_block
--   Cooldown.blocked_by, Ledger._cooldown_block      cooldown_block
--   Ledger._begin_probes, _end_probes, _clear_cooldowns
--                                                    change_cooldowns, with what is changed
--   Ledger.settle, _release, _settle_spending        settle, release, settle_spending
--   Ledger._learn, _take_reported                    learn, take_reported
--   Ledger._count_end, _apply_verdict                count_end, apply_verdict
--   Cooldown.escalate, extend                        the end of apply_verdict
--
-- KEYS[1]: `keyrot:v2:{pool}`, with which all names begin, so that they are in one cluster slot.
-- ARGV[1]: JSON of epoch seconds in tests, null else: this server's clock decides; settles; when
--          the day and the month of now end, or nothing; a call to acquire a key for, or nothing.
-- Returns the time; the ends of the settles' cooldowns, '' for none; JSON about the call, or ''; the
-- name of the day's counts. Without the end of the day only the time.

-- Constants ----------------------------------------------------------------------------------------

-- redis.py sends this file with their numbers in the places of their names, which is faster. Lines
-- stay where they are: the server's errors name them.

-- Those of core/windows.py and state/base.py; a test compares them:
local GUARD_S = 1
local PROBE_S = 2
local PROBE_POLL_S = 0.1
local RESERVED_S = 300
local SLOT_S = 30
local SLOTS = 21
local FADE = 0.9
local MINUTES_KNOWN = 4
local PEAKS_FOLLOW = -1
local HOUR_S = 3600
local DAY_S = 86400
local LONGEST_DAY_S = 90000
local LONGEST_MONTH_S = 2682000
local QUOTA_S = 172800 -- the counts of a day are kept for two
local UNUSED_S = 2764800
local HEALTH_S = 34560000

-- The fields of records, which are JSON arrays; core/windows.py and core/ledger.py say what they are.
-- What another version of this package keeps behind them is written back as it was.

-- QuotaWindows, by project and bucket; those of the calls that are first have a past, others peaks:
local MINUTE, REQUESTS, TOKENS = 1, 2, 3
local LATE_REQUESTS, LATE_TOKENS = 4, 5
local DAY_END, DAY_REQUESTS = 6, 7
local PAST_MINUTES, PAST_REQUESTS, PAST_TOKENS = 8, 9, 10
local PEAKS, PEAK_REQUESTS, PEAK_TOKENS = 8, 9, 10

-- Learned, by project and bucket; what was read is the last three, which may be missing:
local L_UNTIL, L_RPM, L_TPM, L_RPD, L_STEADY = 1, 2, 3, 4, 5
local L_READ_RPM, L_READ_TPM, L_READ_RPD = 6, 7, 8

-- Cooldown, by owner (a billing account, a project or a key) and scope:
local UNTIL, FAILURES, FAILURE, WAITABLE, PROBE_UNTIL = 1, 2, 3, 4, 5

-- Spending, by purse, in billionths of a dollar:
local S_DAY_END, DAY, S_MONTH_END, MONTH, HIGHEST = 1, 2, 3, 4, 5
local PERIOD, RESERVED, RESERVED_BEFORE = 6, 7, 8
local SLOT, RECENT = 9, 10

-- Health, by key:
local LAST_USED, SUCCESSES, ERRORS, LAST_ERROR = 1, 2, 3, 4

-- A block, which is no record but part of the reply: its reason, when it ends, whether a call can
-- wait for that; by the terms of a workload also which of them, the amount, and of which limit.
local REASON, ENDS, CAN_WAIT, TERM, AMOUNT, LIMIT = 1, 2, 3, 4, 5, 6

-- Records ------------------------------------------------------------------------------------------

local test_time, settles, this_day_end, month_end, wanted = unpack(cjson.decode(ARGV[1]))
local time = redis.call('TIME')
local now_text = type(test_time) == 'number' and string.format('%.17g', test_time)
  or string.format('%s.%06d', time[1], time[2])
local now = tonumber(now_text)

if not this_day_end then
  return { now_text }
end

local function full_name(table)
  return KEYS[1] .. ':' .. table
end

local function lasts(ends, longest) -- one that is further away was set by a wrong clock
  return ends and now < ends and ends <= now + longest
end

-- The first process of a day says when it ends: those of other providers may end it at another time.
local day_end = tonumber(redis.call('GET', full_name('day_end')))
if not lasts(day_end, LONGEST_DAY_S) then
  day_end = this_day_end
  redis.call('SET', full_name('day_end'), day_end, 'EX', QUOTA_S)
end

local QUOTAS = full_name('quotas:') .. day_end -- of one day: the counts end with it
local LEARNED, COOLDOWNS, PURSES = full_name('learned'), full_name('cooldowns'), full_name('purses')
local HEALTH, BUCKETS = full_name('health'), full_name('buckets')
local has_seldom = redis.call('EXISTS', LEARNED, COOLDOWNS, PURSES, BUCKETS) > 0
local OFTEN = { [QUOTAS] = true, [HEALTH] = true }

local records = { -- by name; false: there is none
  [QUOTAS] = {}, [LEARNED] = {}, [COOLDOWNS] = {}, [PURSES] = {}, [HEALTH] = {}, [BUCKETS] = {},
}
local changed, lifetimes = {}, {} -- by table

local function decode_limit(text)
  local record = cjson.decode(text)
  return type(record) == 'table' and record or error('it is no record')
end

local function decode_or_none(text) -- of a record that holds no limit
  local is_readable, record = pcall(cjson.decode, text)
  return is_readable and record
end

-- Return records by their place in names; false or nil: there is none. They may be changed.
local function read(table, names)
  local known, missing, found = records[table], {}, {}
  if not (has_seldom or OFTEN[table]) then
    return found
  end
  for _, name in ipairs(names) do
    if known[name] == nil then
      missing[#missing + 1] = name
      known[name] = false
    end
  end
  if #missing > 0 then
    local decode = (table == HEALTH or table == BUCKETS) and decode_or_none or decode_limit
    for i, text in ipairs(redis.call('HMGET', table, unpack(missing))) do
      known[missing[i]] = text and decode(text)
    end
  end
  for i, name in ipairs(names) do
    found[i] = known[name]
  end
  return found
end

-- Change a record; false ends it. The table is kept for at least this long, if that is not nil.
local function save(table, name, record, for_s)
  records[table][name], changed[table] = record, changed[table] or {}
  changed[table][name] = true
  lifetimes[table] = for_s or lifetimes[table]
  has_seldom = has_seldom or not OFTEN[table]
end

local function write_changed()
  for table, names in pairs(changed) do
    local rows, gone = {}, {}
    for name in pairs(names) do
      local record = records[table][name]
      if record then
        rows[#rows + 1], rows[#rows + 2] = name, cjson.encode(record)
      else
        gone[#gone + 1] = name
      end
    end
    if #gone > 0 then
      redis.call('HDEL', table, unpack(gone))
    end
    local is_new = #rows > 0 and redis.call('HSET', table, unpack(rows)) > 0
    if lifetimes[table] and (is_new or table ~= QUOTAS) then -- that of a day begins with the day
      redis.call('EXPIRE', table, lifetimes[table])
    end
  end
end

local function known(number) -- of JSON, in which it may be null
  return type(number) == 'number' and number or nil
end

local function smaller(a, b)
  a, b = known(a), known(b)
  return a and b and math.min(a, b) or a or b
end

-- Of several blocks the one that ends last counts.
local function later(one, other)
  return (not one or (other and other[ENDS] > one[ENDS])) and other or one
end

-- Requests and tokens ------------------------------------------------------------------------------

local minute = math.floor((now - GUARD_S) / 60)

local function advance(q, is_first)
  for i = PAST_MINUTES, is_first and PAST_TOKENS or 0 do
    q[i] = known(q[i]) or 0
  end
  if minute ~= q[MINUTE] and minute ~= q[MINUTE] - 1 then
    local kept, fade = minute == q[MINUTE] + 1, FADE ^ (minute - q[MINUTE])
    if is_first and q[MINUTE] >= 0 and q[MINUTE] < minute then
      q[PAST_MINUTES] = q[PAST_MINUTES] * fade + (1 - fade) / (1 - FADE)
      q[PAST_REQUESTS] = (q[PAST_REQUESTS] + q[REQUESTS] / FADE) * fade
      q[PAST_TOKENS] = (q[PAST_TOKENS] + q[TOKENS] / FADE) * fade
    end
    local is_known = q[PEAKS] == PEAKS_FOLLOW
    local requests = math.max(is_known and known(q[PEAK_REQUESTS]) or 0, q[REQUESTS])
    local tokens = math.max(is_known and known(q[PEAK_TOKENS]) or 0, q[TOKENS])
    if not is_first and (requests > 0 or tokens > 0) then
      q[PEAKS], q[PEAK_REQUESTS], q[PEAK_TOKENS] = PEAKS_FOLLOW, requests, tokens
    end
    q[REQUESTS], q[TOKENS] = kept and q[LATE_REQUESTS] or 0, kept and q[LATE_TOKENS] or 0
    q[LATE_REQUESTS], q[LATE_TOKENS], q[MINUTE] = 0, 0, minute
  end
  return q
end

-- Change the counts of a request that was counted in `slot`: minute, late?, end of the day.
local function adjust(q, slot, requests, tokens)
  local function add(field, more)
    q[field] = math.max(q[field] + more, 0)
  end
  local counted, late, counted_day_end = slot[1], slot[2], slot[3]
  if counted == q[MINUTE] or (late and counted + 1 == q[MINUTE]) then
    add(REQUESTS, requests)
    add(TOKENS, tokens)
  end
  if late and counted == q[MINUTE] then
    add(LATE_REQUESTS, requests)
    add(LATE_TOKENS, tokens)
  end
  if counted_day_end == q[DAY_END] then
    add(DAY_REQUESTS, requests)
  end
end

local function exceeds(used, cost, limit)
  return limit and used + cost > limit and (used > 0 or limit <= 0)
end

-- Return what is used of a limit that refills all the time, in the minute or carried over to it.
local function drained(q, used, late, limit)
  local seconds = math.max(now - q[MINUTE] * 60 - GUARD_S, 0)
  return late + math.max(used - late - limit * seconds / 60, 0)
end

local function full_window(q, rpm, tpm, rpd, call, steady)
  if not (rpm or tpm or rpd) then
    return nil
  end
  local found = exceeds(q[DAY_REQUESTS], call.requests, rpd) and { 'rpd', day_end, false } or nil
  for _, one in ipairs({
    { 'rpm', rpm or false, q[REQUESTS], q[LATE_REQUESTS], call.requests },
    { 'tpm', tpm or false, q[TOKENS], q[LATE_TOKENS], call.tokens },
  }) do
    local reason, limit, used, late, cost = unpack(one)
    used = limit and steady and drained(q, used, late, limit) or used
    if exceeds(used, cost, limit) then
      local ends, needed = (q[MINUTE] + 1) * 60 + GUARD_S, math.min(cost, limit)
      if steady and limit > 0 and needed <= limit - late then
        ends = now + (used + needed - limit) * 60 / limit
      elseif steady and limit > 0 then -- what this minute uses drains in the next
        ends = ends + (late + needed - limit) * 60 / limit
      end
      found = later(found, { reason, ends, true })
    end
  end
  return found
end

local function utilization(q, rpm, tpm, rpd, weight)
  local of_rpm = rpm and rpm > 0 and q[REQUESTS] / rpm or -1
  local of_tpm = tpm and tpm > 0 and q[TOKENS] / tpm or -1
  local of_rpd = rpd and rpd > 0 and q[DAY_REQUESTS] / rpd or -1
  local most = math.max(of_rpm, of_tpm, of_rpd)
  return most >= 0 and most or q[REQUESTS] / weight
end

local FIRST_PART = '\n'

-- Of a part of the calls: a workload that has a share, or ('') all that are first.

local function part_name(name, part)
  return '\n' .. (part == '' and FIRST_PART or part) .. '\n' .. name
end

local function read_part(name, part)
  local found = read(QUOTAS, { part_name(name, part) })[1]
  return advance(found or { -1, 0, 0, 0, 0, day_end, 0 }, part == ''), not found
end

-- Return which window has no room for a workload that leaves some to the first ones. How much, and
-- why, is in core/windows.py (QuotaWindows.kept).
local function held_back(first, q, limits, call)
  local minutes, calls, tokens = unpack(first, PAST_MINUTES)
  local rate, of_day, size = (limits.rpm or 0) / 2, 0, calls > 0 and tokens / calls or 0
  if minutes > MINUTES_KNOWN then
    rate, of_day = calls / minutes, calls / minutes
  end
  local minute_end, found = (q[MINUTE] + 1) * 60 + GUARD_S, nil
  for _, window in ipairs({
    { 'rpd', DAY_REQUESTS, call.requests, 1, of_day, day_end },
    { 'rpm', REQUESTS, call.requests, 1, rate, minute_end },
    { 'tpm', TOKENS, call.tokens, size, rate, minute_end },
  }) do
    local reason, field, cost, one, of, ends = unpack(window)
    local limit, own = limits[reason], first[field]
    if limit then
      local expected = of * math.max(ends - now, 0) / 60
      local most = math.min((expected + 3 * math.sqrt(expected)) * one, 0.95 * limit - own)
      local kept, room = math.floor(math.max(most, 0) + 0.5), limit - q[field] - cost
      if kept > 0 and kept > room and q[field] > own then
        local root = (math.sqrt(9 + 4 * (math.max(room, 0) + 0.5) / one) - 3) / 2
        found = later(found, { reason, ends - root * root / of * 60, reason ~= 'rpd', 'first', kept, limit })
      end
    end
  end
  return found
end

local function part_of(limit, share) -- at least 1
  return limit and share and math.min(limit, math.max(1, math.floor(limit * share))) or limit
end

-- Return which window is full by the terms of the call's workload.
local function terms_block(name, q, rpm, tpm, rpd, call)
  local terms, limits, found = call.terms, { rpm = rpm, tpm = tpm, rpd = rpd }, nil
  if terms.share then
    local function of(limit)
      return part_of(limit, terms.share)
    end
    local part = read_part(name, terms.workload)
    found = full_window(part, of(rpm), of(tpm), of(rpd), call)
    if found then
      local limit = limits[found[REASON]]
      found[TERM], found[AMOUNT], found[LIMIT] = 'share', of(limit), limit
    end
  end
  return later(found, terms.first and held_back(read_part(name, ''), q, limits, call) or nil)
end

-- Return the limits in force, and whether those of a minute refill all the time.
local function limits_of(key, learned)
  local rpm, tpm, rpd, steady = key.rpm, key.tpm, key.rpd, false
  if learned and now < learned[L_UNTIL] then
    rpm, tpm = smaller(rpm, learned[L_RPM]), smaller(tpm, learned[L_TPM])
    rpd = smaller(rpd, learned[L_RPD])
    steady = learned[L_STEADY] == 1
  end
  return part_of(rpm, key.use), part_of(tpm, key.use), part_of(rpd, key.use), steady
end

-- Money --------------------------------------------------------------------------------------------

local function read_purse(name)
  local s = read(PURSES, { name })[1] or { 0, 0, 0, 0, 0, 0, 0, 0, 0, {} }
  if not lasts(s[S_MONTH_END], LONGEST_MONTH_S) then
    s[S_MONTH_END], s[MONTH] = month_end, 0
  end
  if not lasts(s[S_DAY_END], LONGEST_DAY_S) then
    s[S_DAY_END], s[DAY], s[HIGHEST] = day_end, 0, 0
  end
  local period, slot = math.floor(now / RESERVED_S), math.floor(now / SLOT_S)
  if period ~= s[PERIOD] then
    s[RESERVED_BEFORE] = period == s[PERIOD] + 1 and s[RESERVED] or 0
    s[PERIOD], s[RESERVED] = period, 0
  end
  local moved = slot - s[SLOT]
  if moved < -SLOTS or moved > 0 then -- a clock that was set back keeps them
    local recent = {}
    for i = 1, SLOTS do
      recent[i] = s[RECENT][i + math.min(math.abs(moved), SLOTS)] or 0
    end
    s[SLOT], s[RECENT] = slot, recent
  end
  return s
end

local function expected_cost(s, call)
  return s[HIGHEST] > 0 and math.min(math.max(s[HIGHEST], call.input_cost), call.longest_cost)
    or call.longest_cost
end

-- Return why a purse must not pay for a call: `purse` has its name and the limits of its windows.
local function budget_block(s, purse, call)
  local of_10m, of_day, of_month = known(purse[2]), known(purse[3]), known(purse[4])
  local recent, room_at = 0, s[SLOT] * SLOT_S
  for i = SLOTS, 1, -1 do
    recent = recent + s[RECENT][i]
    if of_10m and recent >= of_10m and room_at == s[SLOT] * SLOT_S then
      room_at = (s[SLOT] + i) * SLOT_S
    end
  end
  local more = s[RESERVED] + s[RESERVED_BEFORE] + expected_cost(s, call)
  local windows = {
    { 'usd_month', of_month, s[MONTH], s[S_MONTH_END] },
    { 'usd', of_day, s[DAY], s[S_DAY_END] },
    { 'usd_10m', of_10m, recent, room_at },
  }
  local found
  for _, window in ipairs(windows) do
    local reason, limit, spent, ends = window[1], window[2], window[3], window[4]
    if limit and spent >= limit then
      found = later(found, { reason, ends, reason == 'usd_10m' })
    end
  end
  for _, window in ipairs(windows) do
    local limit, spent = window[2], window[3]
    if s[RESERVED] + s[RESERVED_BEFORE] > 0 and limit and spent + more > limit then
      found = found or { 'usd_reserved', now + PROBE_POLL_S, true }
    end
  end
  return found
end

-- Cooldowns ----------------------------------------------------------------------------------------

local function owners_of(one)
  return { 'billing:' .. one.account, 'project:' .. one.project, 'key:' .. one.record }
end

-- Return the scopes that concern a call, the widest first: place of the owner, and the scope.
local function scopes_of(bucket, verb)
  local scopes = {
    { 1, 'billing' }, { 2, 'project' }, { 3, 'key' }, { 2, 'project_model:' .. bucket },
    { 3, 'key_model:' .. bucket }, { 3, 'key_verb:' .. verb },
  }
  if verb == 'cachedContents' then
    scopes[7] = { 2, 'project_cache' }
  end
  return scopes
end

local function cooldown_block(cooldowns, first, scopes)
  local found
  for _, scope in ipairs(scopes) do
    local of_owner = cooldowns[first + scope[1]]
    local cooldown = of_owner and of_owner[scope[2]]
    if cooldown and now < cooldown[UNTIL] then
      found = later(found, { cooldown[FAILURE], cooldown[UNTIL], cooldown[WAITABLE] })
    elseif cooldown and now < cooldown[PROBE_UNTIL] then
      found = later(found, { 'probe', math.min(now + PROBE_POLL_S, cooldown[PROBE_UNTIL]), true })
    end
  end
  return found
end

-- Let `change` change each cooldown that concerns a lease, or return true to end it; return whether
-- there are any.
local function change_cooldowns(lease, bucket, verb, change)
  if not has_seldom then
    return false
  end
  local owners, found = owners_of(lease), false
  local cooldowns = read(COOLDOWNS, owners)
  for _, scope in ipairs(scopes_of(bucket, verb)) do
    local of_owner = cooldowns[scope[1]]
    if of_owner and of_owner[scope[2]] then
      found = true
      if change(of_owner[scope[2]]) then
        of_owner[scope[2]] = nil
      end
      save(COOLDOWNS, owners[scope[1]], next(of_owner) and of_owner or false, UNUSED_S)
    end
  end
  return found
end

-- Outcomes -----------------------------------------------------------------------------------------

-- Keep limits for a day; return whether those of before refill all the time.
local function learn(name, limits, steady)
  local old, learned = read(LEARNED, { name })[1], { now + DAY_S }
  old = old and now < old[L_UNTIL] and old
  for i, of in ipairs({ { L_RPM, L_READ_RPM }, { L_TPM, L_READ_TPM }, { L_RPD, L_READ_RPD } }) do
    local field, read_field, limit = of[1], of[2], known(limits[i])
    local listed = old and field ~= L_RPD and old[read_field] -- that of a day does not hold here
    learned[field] = limit and smaller(limit, listed) or old and known(old[field]) or cjson.null
    learned[read_field] = old and old[read_field] or nil
  end
  for i = L_READ_RPD + 1, old and #old or 0 do
    learned[i] = old[i]
  end
  learned[L_STEADY] = (steady or old and old[L_STEADY] == 1) and 1 or 0
  local is_new = not old or learned[L_UNTIL] > old[L_UNTIL] + HOUR_S
  for i = L_RPM, L_STEADY do
    is_new = is_new or known(learned[i]) ~= known(old[i])
  end
  if is_new then
    save(LEARNED, name, learned, DAY_S)
  end
  return old and old[L_STEADY] == 1
end

-- Learn the limits that a response names, and count what the service has counted, if that is more.
local function take_reported(s, name)
  local limits, q = {}, advance(read(QUOTAS, { name })[1] or { -1, 0, 0, 0, 0, day_end, 0 })
  for i, one in ipairs(s.reported) do
    limits[i] = one[1]
  end
  if not learn(name, limits, true) then -- what was counted before drains in the next minute too
    q[LATE_REQUESTS], q[LATE_TOKENS] = q[REQUESTS], q[TOKENS]
  end
  for i, counts in ipairs({ { REQUESTS, LATE_REQUESTS }, { TOKENS, LATE_TOKENS }, { DAY_REQUESTS } }) do
    local of, left, used, late = known(s.reported[i][1]), known(s.reported[i][2]), unpack(counts)
    local before = of and late and drained(q, q[used], q[late], of) or q[used]
    for _, field in ipairs(of and left and counts or {}) do
      q[field] = q[field] + math.max(math.ceil(of - left - before), 0)
    end
  end
  save(QUOTAS, name, q, QUOTA_S)
end

local function release(s, name)
  local requests, tokens = 0, known(s.used) and s.used - s.tokens or 0
  if s.kind == 'unsent' then
    requests, tokens = -s.requests, -s.tokens
  end
  local names = { name }
  for _, part in ipairs(s.parts or {}) do
    table.insert(names, part_name(name, part))
  end
  if s.old_bucket then
    table.insert(names, s.project .. '\n' .. s.old_bucket)
  end
  for i, q in pairs((requests ~= 0 or tokens ~= 0) and read(QUOTAS, names) or {}) do
    if q then
      adjust(q, s.slot, requests, tokens)
      save(QUOTAS, names[i], q, QUOTA_S)
    end
  end
  local learned = s.kind == 'success' and read(LEARNED, { name })[1]
  if learned then -- the limits that a single successful request exceeds are wrong, or were raised
    local tokens_used, exceeded = known(s.used) or 0, false
    for field, size in pairs({ [L_RPM] = s.requests, [L_TPM] = tokens_used, [L_RPD] = s.requests }) do
      if known(learned[field]) and size > learned[field] then
        learned[field], exceeded = cjson.null, true
      end
    end
    if exceeded then
      save(LEARNED, name, learned, DAY_S)
    end
  end
  if s.kind == 'success' and s.reported then
    take_reported(s, name)
  end
  if s.probe then
    change_cooldowns(s, s.bucket, s.verb, function(cooldown)
      if cooldown[PROBE_UNTIL] < s.at + PROBE_S + 0.001 then -- else a later one is the probe
        cooldown[PROBE_UNTIL] = 0
      end
    end)
  end
end

local function settle_spending(s, purse)
  local spending, cost = read_purse(purse), known(s.cost) or 0
  for back, field in pairs({ [0] = RESERVED, [1] = RESERVED_BEFORE }) do
    if s.slot and s.period == spending[PERIOD] - back then
      spending[field] = math.max(spending[field] - s.reserved, 0)
    end
  end
  spending[RECENT][SLOTS] = spending[RECENT][SLOTS] + cost
  spending[DAY], spending[MONTH] = spending[DAY] + cost, spending[MONTH] + cost
  spending[HIGHEST] = math.max(spending[HIGHEST], cost)
  save(PURSES, purse, spending, UNUSED_S)
end

local function count_end(s)
  local h = read(HEALTH, { s.key })[1]
  if type(h) ~= 'table' or not (known(h[SUCCESSES]) and known(h[ERRORS])) then
    h = { cjson.null, 0, 0, cjson.null }
  end
  local hour = math.floor((known(h[LAST_USED]) or 0) / HOUR_S)
  h[LAST_USED] = s.slot and now or h[LAST_USED]
  h[SUCCESSES] = h[SUCCESSES] + (s.kind == 'success' and 1 or 0)
  if s.verdict and s.kind ~= 'abandoned' then -- else a person has disabled the key
    h[ERRORS], h[LAST_ERROR] = h[ERRORS] + 1, s.verdict.failure
  end
  save(HEALTH, s.key, h, hour ~= math.floor(now / HOUR_S) and HEALTH_S or nil)
end

local function apply_verdict(s, verdict)
  if verdict.bucket ~= s.bucket and s.bucket ~= '' then
    save(BUCKETS, s.model, verdict.bucket, UNUSED_S)
  end
  if verdict.learned then
    learn(s.project .. '\n' .. verdict.bucket, verdict.learned)
  end
  if not verdict.owner then
    return ''
  end
  local of_owner = read(COOLDOWNS, { verdict.owner })[1] or {}
  for scope, old in pairs(of_owner) do
    -- Those of a key, a project or an account are kept until a success.
    if scope ~= verdict.scope and string.find(scope, '_') and old[UNTIL] + DAY_S < now then
      of_owner[scope] = nil
    end
  end
  local cooldown = of_owner[verdict.scope] or { 0, 0, '', false, 0 }
  local ends = known(verdict['until'])
  if not ends then
    -- Requests that were in flight together and fail together count as one failure.
    if s.at >= cooldown[UNTIL] or cooldown[FAILURES] == 0 then
      cooldown[FAILURES] = cooldown[FAILURES] + 1
    end
    ends = now + math.min(verdict.base_s * 2 ^ math.min(cooldown[FAILURES] - 1, 60), verdict.max_s)
  end
  if ends >= cooldown[UNTIL] then -- an active cooldown is never shortened
    cooldown[UNTIL], cooldown[FAILURE], cooldown[WAITABLE] = ends, verdict.failure, verdict.waitable
  end
  cooldown[PROBE_UNTIL] = 0
  of_owner[verdict.scope] = cooldown
  save(COOLDOWNS, verdict.owner, of_owner, UNUSED_S)
  return string.format('%.17g', cooldown[UNTIL])
end

local function settle(s)
  local is_serving = s.kind == 'serving' -- the first chunk of a stream has arrived: it ends later
  if s.slot and not is_serving then -- else it was not leased here: reported by KeyManager
    release(s, s.project .. '\n' .. s.bucket)
  end
  for _, purse in ipairs(is_serving and {} or s.purses or {}) do
    settle_spending(s, purse)
  end
  for _, owner in ipairs(s.owned or {}) do
    redis.call('SET', full_name('owner:') .. owner[1], cjson.encode({ s.key, s.project }), 'EX', owner[2])
  end
  if not is_serving and (s.kind ~= 'unsent' or s.verdict) then
    count_end(s)
  end
  if is_serving or s.kind == 'success' then
    change_cooldowns(s, s.bucket, s.verb, function(cooldown)
      return cooldown[UNTIL] <= s.at
    end)
  end
  return s.verdict and apply_verdict(s, s.verdict) or ''
end

-- Choosing a key -----------------------------------------------------------------------------------

local function grant(best, call, bucket, old_bucket, blocks)
  local key, q = best.key, best.q
  local name, terms = key.project .. '\n' .. bucket, call.terms
  local late = best.steady or now >= (q[MINUTE] + 1) * 60 - GUARD_S
  local slot = { q[MINUTE], late, day_end }
  adjust(q, slot, call.requests, call.tokens)
  save(QUOTAS, name, q, QUOTA_S)
  if old_bucket then
    adjust(best.old_q, slot, call.requests, call.tokens)
    save(QUOTAS, key.project .. '\n' .. old_bucket, best.old_q, QUOTA_S)
  end
  for _, part in ipairs(terms and terms.parts or {}) do
    local counted = read_part(name, part)
    adjust(counted, slot, call.requests, call.tokens)
    save(QUOTAS, part_name(name, part), counted, QUOTA_S)
  end
  if terms and terms.first then
    local first, is_new = read_part(name, '')
    if is_new then -- it begins to watch them
      save(QUOTAS, part_name(name, ''), first, QUOTA_S)
    end
  end
  local reserved, names = 0, {}
  for i, purse in ipairs(best.purses) do
    names[i] = purse[1]
    reserved = math.max(reserved, expected_cost(best.spending[i], call))
  end
  for i, spending in ipairs(best.spending) do
    spending[RESERVED] = spending[RESERVED] + reserved
    save(PURSES, names[i], spending, UNUSED_S)
  end
  local probe = change_cooldowns(key, bucket, call.verb, function(cooldown)
    cooldown[PROBE_UNTIL] = now + PROBE_S
  end)
  return cjson.encode({
    place = best.place, bucket = bucket, old_bucket = old_bucket, slot = slot, reserved = reserved, probe = probe, blocks = blocks,
    purses = names, period = #names > 0 and math.floor(now / RESERVED_S) or 0,
  })
end

-- Return the bucket in which a call counts, and that of its model's old name, if it is two.
local function buckets_of(call)
  local function of(model)
    local bucket = read(BUCKETS, { model })[1]
    return type(bucket) == 'string' and bucket or model
  end
  local bucket = of(call.model)
  if not call.replaced_by then
    return bucket
  end
  local of_both = of(call.replaced_by)
  return of_both, bucket ~= of_both and bucket or nil
end

local function quota_names(call, bucket)
  local names = {}
  for i, key in ipairs(call.keys) do
    names[i] = key.project .. '\n' .. bucket
  end
  return names
end

local function new_quota()
  return { -1, 0, 0, 0, 0, day_end, 0 }
end

local function acquire(call)
  local bucket, old_bucket = buckets_of(call)
  local names, owners, scopes = quota_names(call, bucket), {}, {}
  local old_names, old_scopes = old_bucket and quota_names(call, old_bucket) or {}, {}
  if has_seldom then
    scopes = scopes_of(bucket, call.verb)
    old_scopes = old_bucket and scopes_of(old_bucket, call.verb) or {}
    for i, key in ipairs(call.keys) do
      for place, owner in ipairs(owners_of(key)) do
        owners[3 * (i - 1) + place] = owner
      end
    end
  end
  local quotas, learned, cooldowns = read(QUOTAS, names), read(LEARNED, names), read(COOLDOWNS, owners)
  local old_quotas, old_learned = read(QUOTAS, old_names), read(LEARNED, old_names)
  local blocks, best = {}, nil
  for i, key in ipairs(call.keys) do
    if best and (call.strategy ~= 'spread' or (key.group or 0) ~= (best.key.group or 0)) then
      break
    end
    local q = advance(quotas[i] or new_quota())
    local old_q = old_bucket and advance(old_quotas[i] or new_quota())
    local rpm, tpm, rpd, steady = limits_of(key, learned[i])
    local block = has_seldom and cooldown_block(cooldowns, 3 * (i - 1), scopes) or nil
    block = later(block, full_window(q, rpm, tpm, rpd, call, steady))
    if old_q then
      local of_rpm, of_tpm, of_rpd, of_steady = limits_of(key, old_learned[i])
      block = later(block, has_seldom and cooldown_block(cooldowns, 3 * (i - 1), old_scopes) or nil)
      block = later(block, full_window(old_q, of_rpm, of_tpm, of_rpd, call, of_steady))
    end
    if call.terms then
      block = later(block, terms_block(names[i], q, rpm, tpm, rpd, call))
    end
    local purses, spending = call.requests > 0 and key.purses or {}, {}
    if call.terms and call.terms.purse and not key.free then
      table.insert(purses, call.terms.purse)
    end
    for place, purse in ipairs(purses) do
      spending[place] = read_purse(purse[1])
      local spent = budget_block(spending[place], purse, call)
      if spent and call.terms and purse == call.terms.purse then
        spent[TERM] = 'usd'
      end
      block = later(block, spent)
    end
    if block then
      blocks[key.key] = block
    else
      local share = call.strategy == 'spread' and utilization(q, rpm, tpm, rpd, key.weight or 1) or 0
      if not best or share < best.share then
        best = {
          place = i - 1, key = key, q = q, old_q = old_q, share = share,
          purses = purses, spending = spending, steady = steady,
        }
      end
    end
  end
  return best and grant(best, call, bucket, old_bucket, blocks) or cjson.encode({ blocks = blocks })
end

-- The run ------------------------------------------------------------------------------------------

local names, ends = {}, {}
for _, bucket in ipairs(wanted and { buckets_of(wanted) } or {}) do
  for _, name in ipairs(quota_names(wanted, bucket)) do
    names[#names + 1] = name
  end
end
for _, s in ipairs(settles) do
  names[#names + 1] = s.project .. '\n' .. s.bucket
  names[#names + 1] = s.old_bucket and s.project .. '\n' .. s.old_bucket
end
read(QUOTAS, names) -- all at once

for i, s in ipairs(settles) do
  ends[i] = settle(s)
end
local reply = wanted and acquire(wanted) or ''
write_changed()
return { now_text, ends, reply, QUOTAS }
