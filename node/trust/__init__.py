"""Work that is checked: audits, evidence, bans; whom this home trusts, and why."""
