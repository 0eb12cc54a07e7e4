"""The ground floor: errors, files, typed records and pictures, which everything else builds on."""
