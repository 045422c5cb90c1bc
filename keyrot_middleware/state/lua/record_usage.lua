-- Count requests and spending without a lease of this server; no limit is checked.
--
-- ARGV: clock ('' except in tests), next Pacific midnights (JSON, ascending), id of the report, number
--       of usages; per usage: project, bucket, requests and tokens of the current minute, requests of
--       the current day; per spending: project, amount in billionths of a dollar.
-- Returns {dropped, epoch, its changes}.

local now, midnights, usages = clock(ARGV[1]), ARGV[2], tonumber(ARGV[4])
local report, FIRST_USAGE, EACH = full_name('report:' .. ARGV[3]), 5, 5

local function record_usage(project, bucket, requests, tokens, day_requests)
  local name = full_quota_name(project, bucket)
  local q = read_quota(name, read_text(name))
  local near_boundary = advance(q, now, midnights)
  add(q, near_boundary, tonumber(requests), tonumber(tokens))
  q[DAY_REQUESTS] = q[DAY_REQUESTS] + tonumber(day_requests)
  save_quota(name, q, now)
  record_bucket(bucket, now)
end

if not read_text(report) then
  for i = 0, usages - 1 do
    local at = FIRST_USAGE + i * EACH
    record_usage(unpack(ARGV, at, at + EACH - 1))
  end
  for i = FIRST_USAGE + usages * EACH, #ARGV, 2 do
    local spending = read_spending(ARGV[i], now, midnights)
    spending[SPENT] = spending[SPENT] + tonumber(ARGV[i + 1])
    save_spending(ARGV[i], spending, now)
  end
  count_change(KEYS[2], read_text(KEYS[2]))
  save(report, '', DAY_S) -- an outage may begin with the reply that is lost
end
local epoch = read_epoch(read_text(KEYS[2])) or { '', 0 }
return { dropped, epoch[ID], epoch[CHANGES] }
