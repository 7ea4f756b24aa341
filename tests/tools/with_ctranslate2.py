"""Check that CTranslate2 and transformers have the same log probabilities and greedy tokens."""

import sys

import ctranslate2
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

checkpoint, converted = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
is_encoder_decoder = AutoConfig.from_pretrained(checkpoint).is_encoder_decoder
auto = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
model = auto.from_pretrained(checkpoint).eval()
ids = tokenizer("She was very").input_ids
tokens = tokenizer.convert_ids_to_tokens(ids)
target = tokenizer("a b c", add_special_tokens=False).input_ids
target_tokens = tokenizer.convert_ids_to_tokens(target)

if is_encoder_decoder:
    translator = ctranslate2.Translator(converted)
    (scores,) = translator.score_batch([tokens], [target_tokens])
    lengths = {"min_decoding_length": 4, "max_decoding_length": 12}
    (result,) = translator.translate_batch([tokens], beam_size=1, **lengths)
    found = tokenizer.convert_tokens_to_ids(result.hypotheses[0])
    target = [*target, tokenizer.eos_token_id]  # CTranslate2 adds this token
    inputs = {"decoder_input_ids": torch.tensor([[model.config.decoder_start_token_id, *target]])}
    logits = model(input_ids=torch.tensor([ids]), **inputs).logits[0, :-1]
else:
    generator = ctranslate2.Generator(converted)
    (scores,) = generator.score_batch([tokens + target_tokens])
    options = {"min_length": 4, "max_length": 12, "include_prompt_in_result": False}
    found = generator.generate_batch([tokens], beam_size=1, **options)[0].sequences_ids[0]
    target = [*ids, *target]
    logits = model(input_ids=torch.tensor([target])).logits[0, :-1]
    target = target[1:]

expected = logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None])[:, 0]
torch.testing.assert_close(torch.tensor(scores.log_probs), expected, rtol=1e-4, atol=1e-4)

lengths = {"min_new_tokens": 4, "max_new_tokens": 12}
generated = model.generate(torch.tensor([ids]), do_sample=False, num_beams=1, **lengths)
start = 1 if is_encoder_decoder else len(ids)
new = generated[0, start:].tolist()
assert len(found) >= 4
assert found == [token for token in new if token != tokenizer.eos_token_id], (found, new)
