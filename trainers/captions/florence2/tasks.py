"""What Florence-2 can be asked for: the names of the tasks, their tokens, and the sentences that
some tokens stand for. Imports nothing.
"""

# The names are those that ComfyUI's users know. PromptGen's tokens exist only in MiaoshouAI's
# fine-tuned models.
TASKS = {
    "caption": "<CAPTION>",
    "detailed_caption": "<DETAILED_CAPTION>",
    "more_detailed_caption": "<MORE_DETAILED_CAPTION>",
    "prompt_gen_tags": "<GENERATE_TAGS>",
    "prompt_gen_mixed_caption": "<MIXED_CAPTION>",
    "prompt_gen_mixed_caption_plus": "<MIXED_CAPTION_PLUS>",
    "prompt_gen_analyze": "<ANALYZE>",
    "ocr": "<OCR>",
}

# The model was trained on the sentences; tokens that are not here are sent as they are.
_SENTENCES = {
    "<CAPTION>": "What does the image describe?",
    "<DETAILED_CAPTION>": "Describe in detail what is shown in the image.",
    "<MORE_DETAILED_CAPTION>": "Describe with a paragraph what is shown in the image.",
    "<OCR>": "What is the text in the image?",
}
_GIVE_REGIONS = (
    "<OD>",
    "<DENSE_REGION_CAPTION>",
    "<REGION_PROPOSAL>",
    "<OCR_WITH_REGION>",
    "<CAPTION_TO_PHRASE_GROUNDING>",
    "<REFERRING_EXPRESSION_SEGMENTATION>",
    "<REGION_TO_SEGMENTATION>",
    "<OPEN_VOCABULARY_DETECTION>",
    "<REGION_TO_CATEGORY>",
    "<REGION_TO_DESCRIPTION>",
    "<REGION_TO_OCR>",
)


def expand_prompt(prompt: str) -> str:
    """What is sent to the model for a task's token, or for a prompt of the user's own.

    Raises:
        ValueError: it is empty, has other text beside one of Florence-2's task tokens, or asks for
            regions instead of a caption.
    """
    prompt = prompt.strip()
    if not prompt:
        raise ValueError("the prompt is empty. Choose a task, or write a prompt such as <DETAILED_CAPTION>")
    regions = next((token for token in _GIVE_REGIONS if token in prompt), None)
    if regions:
        raise ValueError(f"{regions} gives regions of the image, not a caption. Use one of {', '.join(TASKS.values())}")
    beside = next((token for token in _SENTENCES if token in prompt and token != prompt), None)
    if beside:
        raise ValueError(
            f"the prompt {prompt!r} has text beside {beside}, which has to stand alone. Remove the one or the other"
        )
    return _SENTENCES.get(prompt, prompt)
