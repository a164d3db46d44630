// What tests/contract/test_openai_clients.py does with OpenAI's Python client, with the one for JavaScript.
// It reads what to do from its first argument, and writes what it has seen as JSON.
import OpenAI from 'openai'

const told = JSON.parse(process.argv[2])
const options = { baseURL: told.url, apiKey: told.key, maxRetries: 0 }
const client = new OpenAI(options)
const { chat, text } = told

const refusal = async (asked) => {
  try {
    await asked
    return 'answered'
  } catch (error) {
    return { status: error.status, code: error.code, message: error.message }
  }
}

const streamed = async (asked, piece) => {
  const seen = { text: '', usage: null, ended: null }
  for await (const event of await asked) {
    if (event.usage) seen.usage = event.usage.completion_tokens
    for (const choice of event.choices) {
      seen.text += piece(choice) ?? ''
      seen.ended = choice.finish_reason ?? seen.ended
    }
  }
  return seen
}
const content = (choice) => choice.delta.content
const call = (choice) => choice.delta.tool_calls?.[0]?.function?.arguments

const seen = {}
seen.models = (await client.models.list()).data.map((model) => model.id)

const whole = await client.chat.completions.create(chat)
seen.chat = {
  text: whole.choices[0].message.content,
  usage: whole.usage.completion_tokens,
  ended: whole.choices[0].finish_reason,
}
const counted = { ...chat, stream: true, stream_options: { include_usage: true } }
seen.chatStream = await streamed(client.chat.completions.create(counted), content)
seen.uncounted = (await streamed(client.chat.completions.create({ ...chat, stream: true }), content)).usage

const completed = await client.completions.create({ ...text, logprobs: 1 })
seen.completion = { text: completed.choices[0].text, logprobs: completed.choices[0].logprobs.token_logprobs.length }
seen.completionStream = (await streamed(client.completions.create({ ...text, stream: true }), (c) => c.text)).text

const sure = await client.chat.completions.create({ ...chat, logprobs: true, top_logprobs: 1 })
seen.logprobs = sure.choices[0].logprobs.content.map((one) => [one.top_logprobs.length, one.logprob <= 0])

const tool = (await client.chat.completions.create({ ...chat, ...told.tools })).choices[0]
seen.tool = { name: tool.message.tool_calls[0].function.name, arguments: tool.message.tool_calls[0].function.arguments }
seen.toolStream = (await streamed(client.chat.completions.create({ ...chat, ...told.tools, stream: true }), call)).text
const fits = await client.chat.completions.create({ ...chat, ...told.schema })
seen.schema = fits.choices[0].message.content

if (told.embeds) {
  const embedded = await client.embeddings.create({ model: chat.model, input: ['one', 'another'] })
  seen.embeddings = embedded.data.map((one) => one.embedding)
}
seen.image = await refusal(client.chat.completions.create({ ...chat, messages: told.image }))
const large = structuredClone(told.image)
large[0].content[1].image_url.url += 'A'.repeat(told.tooLarge)
seen.tooLarge = await refusal(client.chat.completions.create({ ...chat, messages: large }))
seen.wrongKey = await refusal(new OpenAI({ ...options, apiKey: 'sk-of-nobody-0123456789' }).chat.completions.create(chat))
seen.notAllowed = await refusal(client.chat.completions.create({ ...chat, model: 'secret' }))

process.stdout.write(JSON.stringify(seen))
