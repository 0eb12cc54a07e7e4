"""The lowest floor: errors, files, strict models, pictures and plug-ins, on which everything else is built."""
