-- Ends expired leases; see AdmissionStore.sweep. Returns {leases, millicredits}.

local count, freed = sweep()
if is_changed then
  save()
end
return { count, freed }
