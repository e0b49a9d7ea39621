"""What is measured, and by which code: names and where they lead, cases, threat models, digests."""
