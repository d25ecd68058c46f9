"""What the commands of the operator do and print: `payloops events`, `keys`, `privacy`, `projections`, `staff`, …"""
