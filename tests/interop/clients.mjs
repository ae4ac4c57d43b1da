// Foreign JSON-RPC clients over the socket, unchanged. Run by test_interop.py: node clients.mjs CLIENT SOCKET FILE, prints JSON.
import { readFileSync } from 'node:fs'
import http from 'node:http'
import { createRequire } from 'node:module'
import net from 'node:net'
import path from 'node:path'
import readline from 'node:readline'

const [client, socketPath, file] = process.argv.slice(2)
const require = createRequire(`${process.cwd()}/`)
// The replies of a batch come in any order.
const outcomes = (batch) => batch.sort((a, b) => (a.id < b.id ? -1 : 1)).map((reply) => reply.error?.code ?? reply.result)
const params = { key: `js-${client}`, path: path.resolve(file) }


// A text and what a notification stored, through any client: ask(method, params) answers a result, tell(method, params) nothing.
async function roundTrip(ask, tell) {
  const key = `text-${client}`
  await ask('object.write', { key, value: 'grüße' })
  const { cursor } = await ask('object.changes', {})
  await tell('object.write', { key: `noted-${client}`, value: 'heard' })
  await ask('object.changes', { since: cursor, wait_seconds: 60 }) // a notification is not answered, but what it did is seen
  const [text, noted] = [await ask('object.read', { key, encoding: 'utf-8' }), await ask('object.read', { key: `noted-${client}`, encoding: 'utf-8' })]
  return { text: text.value, noted: noted.value }
}

const clients = {
  // Sans I/O: the transport is ours, one line a message, calls side by side.
  async 'json-rpc-2.0'() {
    const { JSONRPCClient } = require('json-rpc-2.0')
    const socket = net.createConnection(socketPath)
    const rpc = new JSONRPCClient((request) => void socket.write(`${JSON.stringify(request)}\n`))
    readline.createInterface({ input: socket }).on('line', (line) => rpc.receive(JSON.parse(line)))
    const [pong, written] = await Promise.all([rpc.request('rpc.ping', {}), rpc.request('object.write_file', params)])
    const error = await rpc.request('object.stat', { key: 'none' }).catch((found) => found)
    const batch = await rpc.requestAdvanced([
      { jsonrpc: '2.0', id: 'a', method: 'rpc.ping', params: [] },
      { jsonrpc: '2.0', id: 'b', method: 'no.such', params: [] },
    ])
    const texts = await roundTrip((method, given) => rpc.request(method, given), (method, given) => rpc.notify(method, given))
    socket.end()
    return { pong, ...texts, size: written.metadata.size, error: [error.code, error.data.type], batch: outcomes(batch) }
  },

  // Its own line reader, strict about empty lines; one connection for each call.
  async jayson() {
    const jayson = require('jayson/promise')
    const rpc = jayson.Client.tcp({ path: socketPath })
    const pong = (await rpc.request('rpc.ping', {})).result
    const written = (await rpc.request('object.write_file', params)).result
    const error = (await rpc.request('object.stat', { key: 'none' })).error
    const batch = await rpc.request([rpc.request('rpc.ping', [], 'a', false), rpc.request('no.such', [], 'b', false)])
    const texts = await roundTrip(async (method, given) => (await rpc.request(method, given)).result, (method, given) => rpc.request(method, given, null))
    return { pong, ...texts, size: written.metadata.size, error: [error.code, error.data.type], batch: outcomes(batch) }
  },

  async 'jayson-http'() {
    const jayson = require('jayson/promise')
    const rpc = jayson.Client.http({ socketPath, agent: new http.Agent({ keepAlive: true, maxSockets: 1 }) })
    const pong = (await rpc.request('rpc.ping', {})).result
    const written = (await rpc.request('object.write_file', params)).result
    const error = (await rpc.request('object.stat', { key: 'none' })).error
    const batch = await rpc.request([rpc.request('rpc.ping', [], 'a', false), rpc.request('no.such', [], 'b', false)])
    const texts = await roundTrip(async (method, given) => (await rpc.request(method, given)).result, (method, given) => rpc.request(method, given, null))
    rpc.options.agent.destroy()
    return { pong, ...texts, size: written.metadata.size, error: [error.code, error.data.type], batch: outcomes(batch) }
  },

  // Content-Length frames both ways, cancelling, progress.
  async 'vscode-jsonrpc'() {
    const { createMessageConnection, CancellationTokenSource, SocketMessageReader, SocketMessageWriter } = require('vscode-jsonrpc/node')
    const socket = net.createConnection(socketPath)
    const rpc = createMessageConnection(new SocketMessageReader(socket), new SocketMessageWriter(socket))
    const told = []
    rpc.onNotification('notifications/progress', (progress) => told.push(progress.progressToken))
    rpc.listen()
    const pong = await rpc.sendRequest('rpc.ping', {})
    const written = await rpc.sendRequest('object.write_file', { ...params, _meta: { progressToken: 'p' } })
    const error = await rpc.sendRequest('object.stat', { key: 'none' }).catch((found) => found)
    const { cursor } = await rpc.sendRequest('object.changes', {})
    const source = new CancellationTokenSource()
    const waiting = rpc.sendRequest('object.changes', { since: cursor, wait_seconds: 60 }, source.token).catch((found) => found.code)
    source.cancel()
    const cancelled = await waiting
    const texts = await roundTrip((method, given) => rpc.sendRequest(method, given), (method, given) => rpc.sendNotification(method, given))
    rpc.dispose()
    socket.end()
    return { pong, ...texts, size: written.metadata.size, error: [error.code, error.data.type], cancelled, told: told.every((token) => token === 'p') && told.length > 0 }
  },
}

console.log(JSON.stringify(await clients[client]()))
