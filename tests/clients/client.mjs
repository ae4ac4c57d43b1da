// clients/js against the real daemon, with real files. Run by test_js_client.py; node's own test runner reports.
import assert from 'node:assert/strict'
import { createReadStream, readFileSync } from 'node:fs'
import net from 'node:net'
import { Readable } from 'node:stream'
import { after, before, test } from 'node:test'

const { Client, ZstorError, defaultSocket } = await import(`${process.env.CLIENTS}/js/zstor-client.mjs`)
const large = readFileSync('large')
let zstor
before(async () => (zstor = await Client.connect()))
after(() => zstor.close())

test('text and bytes go in and come back', async () => {
  assert.equal((await zstor.put('text', 'grüße')).size, 7)
  assert.equal((await zstor.get('text')).toString(), 'grüße')
  assert.equal((await zstor.get('text', { offset: 1, length: 1 })).toString(), 'r')
  await zstor.put('large', large)
  assert.ok((await zstor.get('large')).equals(large))
  await zstor.put('nothing', '')
  assert.equal((await zstor.get('nothing')).length, 0)
})

test('large data goes by path', async () => {
  await zstor.putFile('film', 'large')
  await zstor.getFile('film', 'film-copy')
  assert.ok(readFileSync('film-copy').equals(large))
})

test('streams are async iterators both ways', async () => {
  const metadata = await zstor.writeStream('stream', createReadStream('large'))
  assert.equal(metadata.size, large.length)
  const pieces = []
  for await (const piece of zstor.readStream('stream')) pieces.push(piece)
  assert.ok(Buffer.concat(pieces).equals(large))
})

test('a read that is left early ends its stream, and the connection goes on', async () => {
  for (let turn = 0; turn < 20; turn++) { // more than the streams that a connection may have
    for await (const piece of zstor.readStream('stream')) {
      assert.ok(piece.length)
      break
    }
  }
  assert.equal(await zstor.call('rpc.ping'), 'pong')
})

test('a source that fails stores nothing', async () => {
  async function* broken() {
    yield 'some'
    throw new Error('the source broke')
  }
  await assert.rejects(zstor.writeStream('broken', broken()), /the source broke/)
  await assert.rejects(zstor.call('object.stat', { key: 'broken' }), { type: 'not_found' })
  await assert.rejects(zstor.writeStream('broken', createReadStream('no such file')), { code: 'ENOENT' })
  const atOnce = new Readable({ read() {} }).destroy(new Error('before anybody reads it'))
  await assert.rejects(zstor.writeStream('broken', atOnce), /before anybody reads it/)
  await assert.rejects(zstor.call('object.stat', { key: 'broken' }), { type: 'not_found' })
})

test('walks and lists are async iterators', async () => {
  for (let n = 0; n < 5; n++) await zstor.put(`walk/${n}`, `${n}`, n ? { previous_key: `walk/${n - 1}` } : {})
  const walked = []
  for await (const item of zstor.walk('walk/0', { values: true })) walked.push([item.key, Buffer.from(item.value_b64, 'base64').toString()])
  assert.deepEqual(walked, [0, 1, 2, 3, 4].map((n) => [`walk/${n}`, `${n}`]))
  const listed = []
  for await (const item of zstor.list('walk/', { limit: 2 })) listed.push(item.key)
  assert.equal(listed.length, 5)
})

test('a list gives what lies behind records that do not open, then throws', async (context) => {
  const damaged = (key, more) => ({ error: { code: 400, message: 'bad', data: { type: 'corrupt_record', key, ...more } } })
  const answers = { '': 'a', a: damaged('b', { cursor: 'b' }), b: 'c', c: damaged('d', { cursor: 'd' }), d: 'e', e: null, f: damaged('f') }
  const server = net.createServer((socket) => socket.on('data', (line) => {
    const { id, params: { cursor, prefix } } = JSON.parse(line)
    const answer = answers[cursor ?? prefix]
    const reply = answer?.error ? answer : { result: { items: answer ? [answer] : [], cursor: answer } }
    socket.write(`${JSON.stringify({ jsonrpc: '2.0', id, ...reply })}\n`)
  })).listen('damaged.sock')
  const own = await Client.connect('damaged.sock')
  context.after(() => (own.close(), server.close()))
  const found = []
  const all = async (prefix) => { for await (const item of own.list(prefix)) found.push(item) }
  await assert.rejects(all(''), (error) => error.type === 'corrupt_record' && error.data.key === 'd')
  assert.deepEqual(found, ['a', 'c', 'e'])
  await assert.rejects(all('f'), { type: 'corrupt_record' }) // which does not say where it goes on
  await assert.rejects(zstor.list('', { namespace: 'none' }).next(), { type: 'not_found' })
})

test('a signal cancels a call, a stream and a walk', async () => {
  const { cursor } = await zstor.call('object.changes')
  const controller = new AbortController()
  const waiting = zstor.call('object.changes', { since: cursor, wait_seconds: 60 }, { signal: controller.signal })
  controller.abort()
  await assert.rejects(waiting, { name: 'AbortError' })
  await assert.rejects(zstor.call('rpc.ping', {}, { signal: controller.signal }), { name: 'AbortError' })
  const second = new AbortController()
  async function* endless() {
    for (;;) {
      yield Buffer.alloc(100_000)
      second.abort()
    }
  }
  await assert.rejects(zstor.writeStream('aborted', endless(), {}, { signal: second.signal }), { name: 'AbortError' })
  await assert.rejects(zstor.call('object.stat', { key: 'aborted' }), { type: 'not_found' })
})

test('errors have their type, deadlines and progress work', async () => {
  await assert.rejects(zstor.call('object.stat', { key: 'none' }), (error) => {
    assert.ok(error instanceof ZstorError)
    assert.deepEqual([error.code, error.type, error.retryable], [100, 'not_found', false])
    return true
  })
  const { cursor } = await zstor.call('object.changes')
  await assert.rejects(zstor.call('object.changes', { since: cursor, wait_seconds: 60 }, { timeoutSeconds: 0.01 }), { type: 'timed_out' })
  const told = []
  await zstor.call('object.write_file', { key: 'told', path: `${process.cwd()}/large` }, { onProgress: (progress) => told.push(progress) })
  assert.ok(told.length)
})

test('calls run side by side', async () => {
  const results = await Promise.all(Array.from({ length: 200 }, (_, n) => zstor.call('object.write', { key: `many/${n}`, value: `${n}` })))
  assert.deepEqual(results.map((result) => result.metadata.key), Array.from({ length: 200 }, (_, n) => `many/${n}`))
})

test('a connection that nobody answers, or that is lost, rejects', async () => {
  await assert.rejects(Client.connect('/no/such/socket'), { code: 'ENOENT', message: /no daemon at \/no\/such\/socket: .*zstor daemon/ })
  const server = net.createServer((socket) => socket.once('data', () => socket.destroy())).listen('gone.sock')
  const lost = await Client.connect('gone.sock')
  await assert.rejects(lost.call('rpc.ping'), { code: 'ECONNRESET' })
  await assert.rejects(lost.call('rpc.ping'), { code: 'ECONNRESET' })
  server.close()
})

test('the socket is found as the command finds it', () => {
  assert.equal(defaultSocket({ ZSTOR_SOCKET: '/s', XDG_RUNTIME_DIR: '/r' }), '/s')
  assert.equal(defaultSocket({ XDG_RUNTIME_DIR: '/r' }), '/r/zstor/zstor.sock')
  assert.equal(defaultSocket({ XDG_STATE_HOME: '/st' }), '/st/zstor/run/zstor.sock')
})
