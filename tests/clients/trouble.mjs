// clients/js where things go wrong. Run by test_js_client.py, which has a daemon started for it alone: DAEMON is its process.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync, symlinkSync } from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import { PassThrough } from 'node:stream'
import { after, before, test } from 'node:test'

const { Client, defaultSocket } = await import(`${process.env.CLIENTS}/js/zstor-client.mjs`)
const daemon = Number(process.env.DAEMON)
const large = readFileSync('large')
let zstor
before(async () => (zstor = await Client.connect()))
after(() => zstor.close())

const notFound = (key) => assert.rejects(zstor.call('object.stat', { key }), { type: 'not_found' })

test('values of any size and kind come back as they were', async () => {
  for (const size of [0, 1, 512 * 1024, 512 * 1024 + 1, 1024 * 1024 - 1, 1024 * 1024, 1024 * 1024 + 1]) {
    await zstor.put('boundary', large.subarray(0, size))
    assert.ok((await zstor.get('boundary')).equals(large.subarray(0, size)), size)
  }
  const words = new Uint16Array([1, 2, 0xffff])
  for (const value of [words, words.buffer, [words, 'text', new DataView(words.buffer, 2)]]) {
    await zstor.put('kinds', value)
    const parts = Array.isArray(value) ? [Buffer.from(words.buffer), Buffer.from('text'), Buffer.from(words.buffer, 2)] : [Buffer.from(words.buffer)]
    assert.ok((await zstor.get('kinds')).equals(Buffer.concat(parts)))
  }
  for (const wrong of [undefined, null, 7, {}, new Blob(['a']), [['a']], [7]]) {
    await assert.rejects(zstor.put('wrong', wrong), { name: 'TypeError', message: /^neither a string nor bytes, nor a stream of them: / })
  }
  await notFound('wrong')
})

test('keys are any text', async () => {
  for (const key of ['Grüße/日本/🗝', 'a b\n\'"\\$(x)', '-rf', '__proto__', '\u0001', '\\ud800', '\\\\udc00']) {
    await zstor.put(key, key)
    assert.equal((await zstor.get(key)).toString(), key)
  }
  for (const half of ['\ud800', '\\\udfff', 'a\ude00b']) await assert.rejects(zstor.put(half, ''), TypeError)
  assert.equal(await zstor.call('rpc.ping'), 'pong')
})

test('what JSON cannot say begins nothing, and its time ends nothing', async () => {
  const own = await Client.connect(undefined, { graceSeconds: 0 })
  await assert.rejects(own.call('object.stat', { key: 7n }, { timeoutSeconds: 0.001 }), TypeError)
  await assert.rejects(own.call('ns.fetch', { name: 'nobody', after_seq: 0, wait_seconds: 30, _meta: { timeoutSeconds: 0.1 } }), { type: 'timed_out' })
  own.close()
})

test('the largest values fit into a message', async () => {
  const value = 'x'.repeat(8 * 1024 * 1024)
  await zstor.call('object.write', { key: '8 MiB', value })
  assert.equal((await zstor.call('object.read', { key: '8 MiB', encoding: 'utf-8' })).value, value)
})

test('an aborted signal begins nothing', async () => {
  const signal = AbortSignal.abort()
  const untouched = { [Symbol.iterator]: () => assert.fail('nobody reads it') }
  for (const begun of [zstor.put('x', 'x', {}, { signal }), zstor.writeStream('x', untouched, {}, { signal }), zstor.get('8 MiB', {}, { signal }), zstor.putFile('x', 'large', {}, { signal })]) {
    await assert.rejects(begun, { name: 'AbortError' })
  }
  for (const iterator of [zstor.walk('8 MiB', {}, { signal }), zstor.list('', {}, { signal })]) await assert.rejects(iterator.next(), { name: 'AbortError' })
  await notFound('x')
})

test('a write whose source has stalled ends with its signal, its time and its connection', async () => {
  for (const [options, error] of [[{ signal: AbortSignal.timeout(20) }, { name: 'TimeoutError' }], [{ timeoutSeconds: 0.02 }, { type: 'timed_out' }]]) {
    const source = new PassThrough()
    source.write('some')
    await assert.rejects(zstor.writeStream('stalled', source, {}, options), error)
    assert.ok(source.destroyed)
    await notFound('stalled')
  }
  const unread = new PassThrough()
  await assert.rejects(zstor.writeStream('stalled', unread, { exclusive: 7 }), { type: 'invalid_params' })
  assert.ok(unread.destroyed) // also where there was no stream yet
  const own = await Client.connect()
  const writing = own.writeStream('stalled', new PassThrough())
  await own.call('rpc.ping')
  own.close()
  await assert.rejects(writing, { code: 'ECONNRESET' })
  await assert.rejects(own.call('rpc.ping'), { code: 'ECONNRESET' })
})

test('reads and walks end with their signal too, and leave no stream behind', async () => {
  await zstor.put('large', large)
  for (let turn = 0; turn < 20; turn++) { // more than the streams that a connection may have
    const controller = new AbortController()
    const read = async () => {
      for await (const piece of zstor.readStream('large', {}, { signal: controller.signal })) controller.abort(piece.length)
    }
    await assert.rejects(read(), (reason) => reason > 0)
  }
  for await (const item of zstor.walk('large')) {
    assert.equal(item.key, 'large')
    break
  }
})

test('a deadline says so by its type, in a time that ends', async () => {
  const { cursor } = await zstor.call('object.changes')
  await assert.rejects(zstor.call('object.changes', { since: cursor, wait_seconds: 60 }, { timeoutSeconds: 0.02 }), { code: 302, type: 'timed_out' })
  await zstor.call('rpc.ping', {}, { timeoutSeconds: 1e9 })
})

test('what else is in _meta goes on', async () => {
  const { job } = await zstor.call('object.check', { key: 'large', _meta: { detach: true } }, { onProgress: () => {}, timeoutSeconds: 60 })
  assert.equal((await zstor.call('job.wait', { job })).state, 'done')
})

test('onProgress that throws ends its call with what it threw', async () => {
  const own = await Client.connect()
  const onProgress = () => { throw new Error('mine') }
  await assert.rejects(own.call('object.write_file', { key: 'told', path: path.resolve('large') }, { onProgress }), /mine/)
})

test('replies in crumbs, and what is no daemon', async () => {
  const reply = Buffer.from('{"jsonrpc":"2.0","result":"grüße","id":1}\n')
  const crumbs = net.createServer((socket) => {
    socket.setNoDelay?.()
    socket.once('data', async () => {
      for (const byte of reply) await new Promise((resolve) => socket.write(Buffer.of(byte), () => setImmediate(resolve)))
      socket.write('HTTP/1.1 400 Bad Request\r\n')
    })
  }).listen('crumbs.sock')
  const client = await Client.connect('crumbs.sock')
  assert.equal(await client.call('x'), 'grüße')
  await assert.rejects(client.call('y'))
  crumbs.close()
})

test('a socket path of any length will do, and costs no descriptor', { timeout: 60_000 }, async () => {
  const link = path.resolve('d'.repeat(100))
  symlinkSync(path.dirname(defaultSocket()), link)
  const open = () => execFileSync('ls', [`/proc/${process.pid}/fd`]).toString().trim().split('\n').length
  const own = await Client.connect(`${link}/zstor.sock`)
  assert.equal(await own.call('rpc.ping'), 'pong')
  own.close()
  const began = open()
  for (let turn = 0; turn < 5; turn++) await assert.rejects(Client.connect(`${link}/nobody.sock`), { code: 'ENOENT' })
  while (open() > began) await new Promise(setImmediate) // what failed is closed soon, or never
})

test('a daemon that is stopped holds nothing that has a time or is cancelled', async () => {
  const clients = await Promise.all(Array.from({ length: 4 }, () => Client.connect(undefined, { graceSeconds: 0.2 })))
  const [timed, aborted, reading, big] = clients
  const leaving = new AbortController()
  const read = reading.readStream('large', {}, { signal: leaving.signal })
  await read.next()
  process.kill(daemon, 'SIGSTOP')
  setTimeout(() => leaving.abort(new Error('enough')), 100)
  try {
    await Promise.all([
      assert.rejects(timed.call('rpc.ping', {}, { timeoutSeconds: 0.1 }), { code: 'ETIMEDOUT' }),
      assert.rejects(aborted.call('rpc.ping', {}, { signal: AbortSignal.timeout(100) }), { code: 'ETIMEDOUT' }),
      assert.rejects((async () => { for await (const _ of read); })(), /enough/),
      assert.rejects(big.put('big', large, {}, { timeoutSeconds: 0.1 }), { code: 'ETIMEDOUT' }),
    ])
  } finally {
    process.kill(daemon, 'SIGCONT')
  }
  await notFound('big')
})

test('a daemon that is killed ends calls, reads and writes', async () => {
  const source = new PassThrough()
  const writing = zstor.writeStream('killed', source)
  const read = zstor.readStream('large')
  await read.next()
  const { cursor } = await zstor.call('object.changes')
  const waiting = zstor.call('object.changes', { since: cursor, wait_seconds: 60 })
  process.kill(daemon, 'SIGKILL')
  const rest = (async () => { for await (const _ of read); })()
  await Promise.all([writing, waiting, rest].map((ended) => assert.rejects(ended, { code: 'ECONNRESET' })))
  assert.ok(source.destroyed)
})
