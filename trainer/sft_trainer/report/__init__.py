"""One page about a training, for people who were not there: made from what lies in the job's folder, without torch."""
