"""What everything else stands on: folders, the machine's facts, numbers into words and units."""
