"""What models are asked, and read, when a result is checked: the same for every build, so that records compare.

Fifty prompts are what benchmarks/merge.py compares texts on; checks of a build take the first of them.
"""

from __future__ import annotations

CHECKED = 8
"""So many prompts are asked in a check: each costs some seconds on a large model without a GPU."""
NEW_TOKENS = 24

PLAIN = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
"""For bases without a chat template."""

PROMPTS = (
    "How do I reset my password?",
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Where is my invoice?",
    "Explain gravity to a child.",
    "Can I get a refund?",
    "Name three colours.",
    "What is 12 plus 30?",
    "How do I change my email address?",
    "Tell me a joke.",
    "What are your opening hours?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "How do I delete my account?",
    "List the days of the week.",
    "What is the boiling point of water?",
    "My parcel has not arrived.",
    "Give me a recipe for pancakes.",
    "What is a prime number?",
    "How do I contact you?",
    "Describe a sunset in one sentence.",
    "What does a database index do?",
    "Is my data safe?",
    "Which planet is the largest?",
    "How do I cancel my subscription?",
    "Write a haiku about winter.",
    "What is the difference between a cat and a dog?",
    "How much does it cost?",
    "Summarise the story of Cinderella.",
    "What is the square root of 81?",
    "The app does not start.",
    "Name a famous painter.",
    "How are rainbows made?",
    "Can I pay by card?",
    "What language is spoken in Brazil?",
    "Give me advice for a job interview.",
    "How long is a marathon?",
    "I forgot my user name.",
    "What is photosynthesis?",
    "Suggest a name for a dog.",
    "How do I write a for loop in Python?",
    "Do you ship abroad?",
    "Who was the first person on the moon?",
    "Write a polite reminder to pay an invoice.",
    "What is the opposite of hot?",
    "How do I update the app?",
    "Why is the sky blue?",
    "Where can I see my orders?",
    "Give three tips to sleep better.",
    "Hello!",
)

READ = (
    "The museum opens at nine in the morning and closes at six in the evening. Visitors who arrive late may still see "
    "the garden, which stays open until it is dark.",
    "Water boils at one hundred degrees at the level of the sea. On a mountain, where air is thin, it boils sooner.",
    "She put the letter on the table, looked out of the window, and said that the train would be late again.",
    "A list of numbers is sorted when each number is at least as large as the one before it.",
)
"""How well a model predicts these is compared before and after a step."""
