-- Settle a lease: true tokens, concurrency, cooldowns, learned limits, owners, counts.
--
-- KEYS: the pool, the replies with that of this lease, as in acquire.lua the five records of its
--       candidate, and the epoch.
-- ARGV:  1 clock ('' except in tests)  2 the calling host's clock, for the times of a verdict
--        3 key  4 project  5 record of the key  6 bucket  7 verb  8 requested model
--        9 outcome (success, failure, abandoned, unsent, serving)
--       10 true input tokens, '' if unknown
--       11 lease id, '' if nothing was reserved here: KeyManager reported the outcome
--       12 granted at  13 minute  14 near boundary  15 end of day  16 counted
--       17 requests reserved  18 tokens reserved
--       19 verdict (JSON), '' if there is none
--       20 cost in billionths of a dollar, '?' if unknown, '' without a budget
--       21 next Pacific midnights (JSON, ascending), '' without a budget
--       22 what keeps the costs of the service tier apart in which the request was served
--       23 id of this settle: that of the lease, if it was reserved here
--       24 and following: digest of a resource name, seconds to keep its owner
-- Returns {dropped, and a text of three words}: until when the scope of the failure cools down, by the calling
-- host's clock; and if it has counted a cost, the epoch and its changes. A dash if there is none.

local test_clock, host_now = ARGV[1], ARGV[2]
local key, project, record = ARGV[3], ARGV[4], ARGV[5]
local bucket, verb, model = ARGV[6], ARGV[7], ARGV[8]
local outcome, used, lease = ARGV[9], tonumber(ARGV[10]), ARGV[11]
local granted, minute, near_boundary = tonumber(ARGV[12]), tonumber(ARGV[13]), ARGV[14] == '1'
local day_end, counted = tonumber(ARGV[15]), ARGV[16] == '1'
local requests, tokens = tonumber(ARGV[17]), tonumber(ARGV[18])
local verdict = ARGV[19] ~= '' and cjson.decode(ARGV[19]) or nil
local cost, midnights, price_suffix = ARGV[20], ARGV[21], ARGV[22]

-- Read all records -------------------------------------------------------------------------------

-- Without a verdict, times only decide how long records are kept: the time of the grant is enough.
local now = verdict and clock(test_clock) or granted
local ID_OF_SETTLE, FIRST_RESOURCE, EPOCH = 23, 24, 6
local names = { unpack(KEYS, 3) }
local quota_name, health_name = names[4], names[5]
local texts = redis.call('MGET', unpack(names))
local reply = call('HGET', KEYS[2], ARGV[ID_OF_SETTLE])
if reply and is_settled(reply) then -- the caller did not receive the reply
  return { dropped, string.sub(reply, #SETTLED + 1) }
end
local cooldowns, changed = {}, {} -- changed: indexes of cooldown records
for i = 1, 3 do
  cooldowns[i] = read_cooldowns(names[i], texts[i])
end
local health = read_health(health_name, texts[5])
local q -- read when it is needed
local function get_quota()
  q = q or read_quota(quota_name, texts[4])
  return q
end
local active_scopes = (texts[1] or texts[2] or texts[3]) and scopes(bucket, verb) or {}
local reported_bucket = verdict and verdict.bucket ~= '' and verdict.bucket or bucket

-- The reservation --------------------------------------------------------------------------------

-- Change the counts of the reservation in the windows that are still kept; not below 0, since this
-- server may have lost the reservation.
local function adjust(more_requests, more_tokens)
  get_quota()
  if minute == q[MINUTE] then
    add(q, near_boundary, more_requests, more_tokens)
  elseif near_boundary and minute + 1 == q[MINUTE] then
    add(q, false, more_requests, more_tokens)
  end
  if day_end == q[DAY_END] then
    q[DAY_REQUESTS] = math.max(q[DAY_REQUESTS] + more_requests, 0)
  end
end

local function release()
  if texts[4] and outcome == 'unsent' then
    adjust(-requests, -tokens)
    save_quota(quota_name, q, now)
  elseif texts[4] and used and used ~= tokens then
    adjust(0, used - tokens)
    save_quota(quota_name, q, now)
  end
  if counted then
    call('ZREM', full_name('lease:' .. record), lease)
  end
  for _, scope in ipairs(active_scopes) do
    local cooldown = cooldowns[scope[1]][scope[2]]
    if cooldown and cooldown.probe == lease then
      cooldown.probe, cooldown.probe_until, changed[scope[1]] = '', '0', true
    end
  end
end

-- Cooldowns --------------------------------------------------------------------------------------

-- End the cooldowns that were over when the successful lease was granted.
local function clear_cooldowns()
  local server_now = #active_scopes > 0 and clock(test_clock)
  for _, scope in ipairs(active_scopes) do
    local cooldown = cooldowns[scope[1]][scope[2]]
    if cooldown then
      local is_over = parse_seconds(cooldown['until']) <= granted
      if is_over or is_in_future(cooldown, server_now) then
        cooldowns[scope[1]][scope[2]], changed[scope[1]] = nil, true
      end
    end
  end
end

-- Drop the learned limits that a single successful request exceeds: they are wrong, or were raised.
local function drop_exceeded_limits()
  if not get_quota()[LEARNED_UNTIL] then
    return
  end
  local sizes = { [LEARNED_RPM] = requests, [LEARNED_TPM] = used or 0, [LEARNED_RPD] = requests }
  local exceeded = false
  for field, size in pairs(sizes) do
    if q[field] >= 0 and size > q[field] then
      q[field], exceeded = -1, true
    end
  end
  if exceeded then
    if q[LEARNED_RPM] < 0 and q[LEARNED_TPM] < 0 and q[LEARNED_RPD] < 0 then
      q[LEARNED_UNTIL] = nil
    end
    save_quota(quota_name, q, now)
  end
end

local function store_limits()
  if verdict.rpm < 0 and verdict.tpm < 0 and verdict.rpd < 0 then
    return
  end
  local learned_name, learned = quota_name, nil
  if reported_bucket == bucket then
    learned = get_quota()
  else
    learned_name = full_quota_name(project, reported_bucket)
    learned = read_quota(learned_name, read_text(learned_name))
  end
  local kept = learned[LEARNED_UNTIL] and now < learned[LEARNED_UNTIL]
  local function set(field, value)
    learned[field] = value >= 0 and value or kept and learned[field] or -1
  end
  set(LEARNED_RPM, verdict.rpm)
  set(LEARNED_TPM, verdict.tpm)
  set(LEARNED_RPD, verdict.rpd)
  learned[LEARNED_UNTIL] = now + DAY_S
  save_quota(learned_name, learned, now)
  record_bucket(reported_bucket, now)
end

-- Return how far this clock is ahead of the calling host's; 0 within the guard.
local function clock_skew()
  local skew = host_now ~= '' and now - tonumber(host_now) or 0
  return math.abs(skew) > GUARD_S and skew or 0
end

-- Return where a scope is stored: the index of the record (billing, project, key), and the field.
local function slot_of(scope)
  return ({
    billing = { 1, 'billing' }, project = { 2, 'project' }, key = { 3, 'key' },
    project_model = { 2, 'project_model:' .. reported_bucket },
    key_model = { 3, 'key_model:' .. reported_bucket },
    key_verb = { 3, 'key_verb:' .. verb }, project_cache = { 2, 'project_cache' },
  })[scope]
end

local function extend_cooldown(slot)
  local scopes, field = cooldowns[slot[1]], slot[2]
  local cooldown = scopes[field] or { ['until'] = '0', strikes = 0 }
  local ends
  if verdict['until'] ~= '' then
    ends = parse_seconds(verdict['until']) + clock_skew()
  else
    -- Requests that were in flight together and fail together count as one failure.
    if granted >= parse_seconds(cooldown['until']) or cooldown.strikes == 0 then
      cooldown.strikes = cooldown.strikes + 1
    end
    ends = now + math.min(verdict.base_s * 2 ^ math.min(cooldown.strikes - 1, 60), verdict.max_s)
  end
  -- An active cooldown is never shortened.
  if ends >= parse_seconds(cooldown['until']) or is_in_future(cooldown, now) then
    cooldown['until'], cooldown.waitable = format_exact(ends), verdict.waitable
    cooldown.failure = verdict.failure
    cooldown.length = ends == math.huge and 'inf' or format_exact(ends - now)
  end
  cooldown.probe, cooldown.probe_until = '', '0'
  scopes[field], changed[slot[1]] = cooldown, true
  return format_exact(parse_seconds(cooldown['until']) - clock_skew())
end

local function apply_verdict()
  if reported_bucket ~= bucket and bucket ~= '' then
    save(full_name('bucket:' .. model), reported_bucket, RECORD_TTL_S)
  end
  store_limits()
  local slot = slot_of(verdict.scope)
  if slot then
    return extend_cooldown(slot)
  end
end

-- Write ------------------------------------------------------------------------------------------

local epoch
if outcome == 'serving' then -- the first chunk of a stream has arrived: it ends later
  clear_cooldowns()
elseif lease ~= '' then
  release()
  if cost ~= '' then
    local moment = clock(test_clock)
    local spending = read_spending(project, moment, midnights)
    settle_spending(spending, lease, bucket .. price_suffix, tonumber(cost), outcome == 'success')
    save_spending(project, spending, moment)
    epoch = tonumber(cost) and count_change(names[EPOCH], texts[EPOCH])
  end
end
for i = FIRST_RESOURCE, #ARGV, 2 do
  save(full_name('owner:' .. ARGV[i]), cjson.encode({ key, project }), tonumber(ARGV[i + 1]))
end
if outcome == 'success' then
  health[SUCCESSES] = health[SUCCESSES] + 1
  if texts[4] and lease ~= '' then
    drop_exceeded_limits()
  end
  clear_cooldowns()
end
local until_s
if verdict then
  if outcome ~= 'abandoned' then -- else an operator disabled the key
    health[ERRORS], health[LAST_ERROR] = health[ERRORS] + 1, verdict.failure
  end
  until_s = apply_verdict()
end
if outcome == 'success' or verdict then
  save_health(health_name, health)
end
for owner in pairs(changed) do
  save_cooldowns(names[owner], cooldowns[owner], now)
end
epoch = epoch or { '-', 0 }
reply = string.format('%s %s %d', until_s or '-', epoch[ID], epoch[CHANGES])
if outcome ~= 'serving' then
  save_reply(KEYS[2], ARGV[ID_OF_SETTLE], SETTLED .. reply)
end
return { dropped, reply }
