"""Where trainings are recorded: MLflow, Weights & Biases, model cards, adapter folders. Each gives a Record."""
