"""What is recorded of the live step, one file per thing observed; nothing here outlives the step."""
