"""The instructions of the demo's benchmark and of its teacher.

They are few, and the benchmark's is one of the teacher's: in a minute, a model of this size cannot learn the meaning of
instructions, only to handle those that it was trained on. mmE5's benchmark also uses the instructions of its training.
"""

QUERY_INSTRUCTION = "Retrieve an image of this caption."
IMAGE_INSTRUCTION = "Represent the given image."

INSTRUCTIONS = {
    "classification": (
        "Identify the kind of thing that this picture shows.",
        "Name the category that the picture belongs to.",
    ),
    "vqa": ("Answer the question about the picture.", "Give a short answer to the question on this picture."),
    "T2I": (QUERY_INSTRUCTION, "Find the picture that these words name."),
    "I2T": ("Find the words that name this picture.", "Retrieve a caption for the given image."),
    "I2I": ("Find a picture that is closely related to this one.", "Retrieve a variant of the given image."),
    "IT2T": ("Find the words for the picture, given a hint.",),
    "T2IT": ("Find a picture with its caption for this phrase.",),
    "IT2I": ("Find a related picture, given this one and its name.",),
    "IT2IT": ("Retrieve a related picture with its caption.",),
}
