// clients/js for test_every_method.py: a line {method, params} comes in, a line {result} or {error} goes out.
import readline from 'node:readline'

const { Client, ZstorError } = await import(`${process.env.CLIENTS}/js/zstor-client.mjs`)
const zstor = await Client.connect()

async function run(method, params) {
  if (method === 'read a stream') {
    const pieces = []
    for await (const piece of zstor.readStream(params.key)) pieces.push(piece)
    return Buffer.concat(pieces).toString()
  }
  if (method === 'leave a stream') {
    for await (const piece of zstor.readStream(params.key)) return piece.subarray(0, 1).toString()
  }
  return zstor.call(method, params)
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { method, params } = JSON.parse(line)
  const outcome = await run(method, params).then(
    (result) => ({ result }),
    (error) => ({ error: { type: error instanceof ZstorError ? error.type : String(error), code: error.code, retryable: error.retryable } }),
  )
  console.log(JSON.stringify(outcome))
}
zstor.close()
