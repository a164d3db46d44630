"""Files of models and adapters: reading them safely, their digest, copies of them, and what is in safetensors files."""
