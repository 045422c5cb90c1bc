-- Settle earlier leases whose request succeeded. Then select a key that has capacity in every window
-- and no active cooldown, and reserve its capacity.
--
-- With an empty lease id this is a dry run: each candidate is checked separately and
-- nothing is written; the reply is that of a refusal, with the reason '' for available candidates.
--
-- Values that go together are packed into one argument: see scripts.py.
--
-- Values that go together are packed into one argument: see scripts.py.
--
-- ARGV: 1 clock ('' except in tests)  2 id of the settles, '' if there are none  3 settles: SETTLE
--       4 lease id  5 candidates: CANDIDATE  6 the call: CALL_FORMAT; '' if there is nothing to acquire
--       7 the epoch that the caller knows, '' if none  8 its changes  9 earlier epochs
-- Returns {dropped, 1, a text} if a lease is granted. Its first line is: epoch, its changes, position,
--          now, probe, minute, near boundary, end of day, counted. Its second one has the refusals
--          (JSON), the rest is the bucket.
--      or {dropped, 0, epoch, its changes, now, refusals}; a refusal is {position, reason, until,
--          waitable}
--      or {dropped, -1, epoch, its changes, epoch and changes of the data that was kept} if the epoch
--          is not the one that the caller knows
--      or {dropped} if there is nothing to acquire.

local test_clock, settles, lease = ARGV[1], ARGV[2], ARGV[4]
local has_cooldowns = redis.call('EXISTS', full_name('cooling')) == 1

if lease ~= '' then
  local earlier = call('HGET', replies_name(lease), lease)
  if earlier then -- the caller did not receive the reply
    return is_settled(earlier) and redis.error_reply('ERR the lease was given back')
      or { dropped, 1, earlier }
  end
end

-- Settle a lease whose request succeeded, without a cost, owners, a probe, or a place to free.
local function settle_success(settle)
  local project, bucket, granted = settle[PROJECT_OF_SETTLE], settle[BUCKET], settle[GRANTED]
  local quota_name = full_quota_name(project, bucket)
  local text = read_text(quota_name)
  if text then
    local q, used = read_quota(quota_name, text), settle[USED]
    local more = used >= 0 and used - settle[SETTLED_TOKENS] or 0
    if more ~= 0 then
      adjust(q, settle[GRANTED_MINUTE], settle[NEAR_BOUNDARY] == 1, settle[GRANTED_DAY_END], 0, more)
    end
    if drop_exceeded_limits(q, settle[SETTLED_REQUESTS], used) or more ~= 0 then
      save_quota(quota_name, q, granted)
    end
  end
  count_end(settle[SETTLED_KEY], 'successes')
  save_reply(replies_name(settle[SETTLED_LEASE]), settle[SETTLED_LEASE], SETTLED)
  if has_cooldowns then
    local names = cooldown_names(settle[SETTLED_ACCOUNT], project, settle[SETTLED_RECORD])
    local texts = redis.call('MGET', unpack(names))
    local cooldowns = {}
    for i = 1, 3 do
      cooldowns[i] = read_cooldowns(names[i], texts[i])
    end
    local active = scopes(bucket, settle[SETTLED_VERB])
    for owner in pairs(clear_cooldowns(cooldowns, active, granted, clock(test_clock))) do
      save_cooldowns(names[owner], cooldowns[owner], granted)
    end
  end
end

if settles ~= '' then
  local name = replies_name(settles)
  if not call('HGET', name, settles) then
    local at = 1
    while at <= #ARGV[3] do
      local settle = { struct.unpack(SETTLE_FORMAT, ARGV[3], at) }
      settle_success(settle)
      at = settle[#settle]
    end
    save_reply(name, settles, SETTLED)
  end
end
if ARGV[6] == '' then
  return { dropped }
end

local requests, tokens, spread, lease_s, input_cost, longest_cost, midnights, model, verb, bucket,
  price_suffix = struct.unpack(CALL_FORMAT, ARGV[6])
local dry = lease == ''
local now, now_text = clock(test_clock)

-- Read all records ---------------------------------------------------------------------------------

local candidates, names = {}, { KEYS[2], full_name('bucket:' .. model) }
local FIRST = #names
local at, count = 1, 0
while at <= #ARGV[5] do
  local candidate = { struct.unpack(CANDIDATE_FORMAT, ARGV[5], at) }
  at, count = candidate[NEXT], count + 1
  candidates[count] = candidate
  names[FIRST + count] = full_quota_name(candidate[PROJECT], bucket)
end
local texts = redis.call('MGET', unpack(names))
local epoch = { '', 0 }
if not dry then
  epoch = current_epoch(KEYS[2], texts[1], ARGV[7], ARGV[8], ARGV[9], lease)
  if ARGV[7] ~= '' and epoch[ID] ~= ARGV[7] then
    return { dropped, -1, unpack(epoch) }
  end
end
local known_bucket = texts[2] or model
if known_bucket ~= bucket then -- the bucket of the model has changed
  bucket = known_bucket
  for i, candidate in ipairs(candidates) do
    names[FIRST + i] = full_quota_name(candidate[PROJECT], bucket)
  end
  texts = redis.call('MGET', unpack(names))
end

local active_scopes, cooldown_texts, all_names
if has_cooldowns and count > 0 then
  all_names = {}
  for i, candidate in ipairs(candidates) do
    local account, record = struct.unpack(NAMES_FORMAT, candidate[NAMES])
    local some = cooldown_names(account, candidate[PROJECT], record)
    all_names[3 * i - 2], all_names[3 * i - 1], all_names[3 * i] = unpack(some)
  end
  active_scopes, cooldown_texts = scopes(bucket, verb), redis.call('MGET', unpack(all_names))
end

-- Return the cooldowns of a candidate; nil if there are none.
local function read_candidate_cooldowns(position)
  local found
  for owner = 1, 3 do
    local i = 3 * (position - 1) + owner
    if cooldown_texts[i] then
      found = found or { {}, {}, {} }
      found[owner] = read_cooldowns(all_names[i], cooldown_texts[i])
    end
  end
  return found
end

-- Check the candidates in order --------------------------------------------------------------------

-- Return the limit in force: of the configured and the learned one the smaller; -1: unknown.
local function smaller(learned, configured)
  return (learned < 0 or (configured >= 0 and configured < learned)) and configured or learned
end

local function cooldown_block(records)
  for _, scope in ipairs(active_scopes) do
    local cooldown = records[scope[1]][scope[2]]
    if cooldown and now < parse_seconds(cooldown['until']) and not is_in_future(cooldown, now) then
      return cooldown.failure, parse_seconds(cooldown['until']), cooldown.waitable
    elseif cooldown and cooldown.probe ~= '' then
      local ends = tonumber(cooldown.probe_until)
      if now < ends and ends <= now + PROBE_S then -- a clock that was set back does not extend it
        return 'probe', math.min(now + POLL_S, ends), true
      end
    end
  end
end

local function limit_block(candidate, q, near_boundary, rpm, tpm, rpd)
  if candidate[CONCURRENCY] >= 0 then
    local _, record = struct.unpack(NAMES_FORMAT, candidate[NAMES])
    local leases = full_name('lease:' .. record)
    if call('ZCOUNT', leases, '(' .. now_text, '+inf') >= candidate[CONCURRENCY] then
      return 'concurrency', now + POLL_S, true
    end
  end
  if rpd >= 0 and exceeds(q[DAY_REQUESTS], requests, rpd) then
    return 'rpd', q[DAY_END], false
  end
  if rpm >= 0 then
    if near_boundary and exceeds(q[REQUESTS_NEXT], requests, rpm) then
      return 'rpm', (q[MINUTE] + 2) * 60 + GUARD_S, true
    elseif exceeds(q[REQUESTS], requests, rpm) then
      return 'rpm', (q[MINUTE] + 1) * 60 + GUARD_S, true
    end
  end
  if tpm >= 0 then
    if near_boundary and exceeds(q[TOKENS_NEXT], tokens, tpm) then
      return 'tpm', (q[MINUTE] + 2) * 60 + GUARD_S, true
    elseif exceeds(q[TOKENS], tokens, tpm) then
      return 'tpm', (q[MINUTE] + 1) * 60 + GUARD_S, true
    end
  end
end

-- Return the used fraction of the scarcest limit; requests per weight without limits.
local function utilization(q, weight, rpm, tpm, rpd)
  local highest = -1
  if rpm > 0 then
    highest = q[REQUESTS] / rpm
  end
  if tpm > 0 then
    highest = math.max(highest, q[TOKENS] / tpm)
  end
  if rpd > 0 then
    highest = math.max(highest, q[DAY_REQUESTS] / rpd)
  end
  return highest >= 0 and highest or q[REQUESTS] / weight
end

local minute, next_minute = math.floor((now - GUARD_S) / 60), math.floor((now + GUARD_S) / 60)
local best, best_used, refusals = nil, nil, {} -- best: what is needed to reserve it
for position, candidate in ipairs(candidates) do
  if best and not dry and (candidate[GROUP] ~= best.candidate[GROUP] or spread == 0) then
    break
  end
  local q = read_quota(names[FIRST + position], texts[FIRST + position])
  local cooldowns = has_cooldowns and read_candidate_cooldowns(position)
  local day_end, near_boundary = q[DAY_END], next_minute > q[MINUTE]
  if q[MINUTE] ~= minute or q[LEARNED_UNTIL] or not is_in_day(day_end, now) then
    near_boundary = advance(q, now, midnights)
  end
  local rpm, tpm, rpd = candidate[RPM], candidate[TPM], candidate[RPD]
  if q[LEARNED_UNTIL] then
    rpm, tpm = smaller(q[LEARNED_RPM], rpm), smaller(q[LEARNED_TPM], tpm)
    rpd = smaller(q[LEARNED_RPD], rpd)
  end
  local reason, until_s, waitable
  if cooldowns then
    reason, until_s, waitable = cooldown_block(cooldowns)
  end
  if not reason then
    reason, until_s, waitable = limit_block(candidate, q, near_boundary, rpm, tpm, rpd)
  end
  local spending, expected
  if not reason and candidate[BUDGET] >= 0 and requests > 0 then
    spending = read_spending(candidate[PROJECT], now, midnights)
    expected = expected_cost(spending, bucket .. price_suffix, input_cost, longest_cost)
    reason, until_s, waitable = budget_block(spending, candidate[BUDGET], expected, now)
  end
  if reason or dry then
    refusals[#refusals + 1] = {
      position, reason or '', format_exact(until_s or 0), waitable and 1 or 0,
    }
  else
    local used = spread == 1 and utilization(q, candidate[WEIGHT], rpm, tpm, rpd) or 0
    if not best or used < best_used then
      best_used = used
      best = {
        position = position, candidate = candidate, cooldowns = cooldowns, q = q, day_end = day_end,
        near_boundary = near_boundary, spending = spending, expected = expected,
      }
    end
  end
end
if dry or not best then
  return { dropped, 0, epoch[ID], epoch[CHANGES], now_text, refusals }
end

-- Reserve the best ---------------------------------------------------------------------------------

local candidate, q = best.candidate, best.q
local _, record, key = struct.unpack(NAMES_FORMAT, candidate[NAMES])

add(q, best.near_boundary, requests, tokens)
q[DAY_REQUESTS] = q[DAY_REQUESTS] + requests
save_quota(names[FIRST + best.position], q, now)
if q[DAY_END] ~= best.day_end then -- the first of the day
  record_bucket(bucket, now)
end
epoch[CHANGES] = epoch[CHANGES] + 1
save_epoch(KEYS[2], epoch)

local probing = 0
if best.cooldowns then -- all of them have ended: this lease is their probe
  local changed = {}
  for _, scope in ipairs(active_scopes) do
    local cooldown = best.cooldowns[scope[1]][scope[2]]
    if cooldown then
      cooldown.probe, cooldown.probe_until = lease, format_exact(now + PROBE_S)
      probing, changed[scope[1]] = 1, true
    end
  end
  for owner in pairs(changed) do
    save_cooldowns(all_names[3 * (best.position - 1) + owner], best.cooldowns[owner], now)
  end
end

if best.spending then
  best.spending[RESERVED][lease] = { best.expected, record }
  save_spending(candidate[PROJECT], best.spending, now)
end

local counted = (candidate[CONCURRENCY] >= 0 or best.spending) and 1 or 0
if counted == 1 then
  local leases = full_name('lease:' .. record)
  call('ZREMRANGEBYSCORE', leases, '-inf', now_text)
  redis.call('ZADD', leases, format_exact(now + lease_s), lease)
  redis.call('PEXPIRE', leases, math.ceil(lease_s * 1000))
end

local health_name = full_name('health:' .. key)
local value = string.match(record, '@(%x+)$') or ''
call('HSET', health_name, 'last_used', now_text, 'value', value)
redis.call('EXPIRE', health_name, RECORD_TTL_S)
local reply = string.format('%s %d %d %s %d %d %d %d %d\n%s\n%s', epoch[ID], epoch[CHANGES],
  best.position, now_text, probing, q[MINUTE], best.near_boundary and 1 or 0, q[DAY_END], counted,
  #refusals > 0 and cjson.encode(refusals) or '[]', bucket)
save_reply(replies_name(lease), lease, reply)
return { dropped, 1, reply }
