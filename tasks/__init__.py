"""The phases as Prefect tasks: their options, and one call into `ups` each."""
