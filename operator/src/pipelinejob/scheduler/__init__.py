"""All schedules by name, and the search for one that suits given costs."""
