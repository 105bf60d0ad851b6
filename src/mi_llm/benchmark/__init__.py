"""What tuning costs: multiple-choice questions to base and tuned models, an optional stage."""
