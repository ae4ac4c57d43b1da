// A client of zstor-local in one file, without dependencies: Node 18 or newer. Copy it, or `npm install` its folder.
//
//   import { Client } from 'zstor-client'
//
//   const zstor = await Client.connect()
//   await zstor.put('notes', 'some text')                       // a string, bytes, or an (async) iterable of them
//   await zstor.putFile('film', 'film.mkv')                     // by path: the daemon reads the file
//   for await (const piece of zstor.readStream('film')) …       // Buffers
//   for await (const item of zstor.walk('notes')) …             // {key, metadata, references}
//   await zstor.call('reference.append', { key: 'notes', references: ['todo'] })   // every method: zstor call help
//   zstor.close()
//
// Calls run side by side on one connection. Errors of the daemon are ZstorErrors with `code`, `type`, `retryable`, `hint`, `data`;
// a connection that is lost rejects with an Error whose code is ECONNRESET, one that nobody answers with ENOENT or ECONNREFUSED.

import net from 'node:net'
import os from 'node:os'
import path from 'node:path'

const PIECE_BYTES = 1024 * 1024 // of a stream's message, at most
const WINDOW = 4 // messages of a stream not yet answered
const INLINE_BYTES = 512 * 1024 // larger values go as a stream

export class ZstorError extends Error {
  constructor({ code, message, data = {} }) {
    super(data.detail ?? message)
    this.name = 'ZstorError'
    Object.assign(this, { code, data, type: data.type, retryable: Boolean(data.retryable), hint: data.hint })
  }
}

/** Where the daemon listens unless it is told otherwise: the same order that daemon and command try. */
export function defaultSocket(env = process.env) {
  if (env.ZSTOR_SOCKET) return env.ZSTOR_SOCKET
  if (env.XDG_RUNTIME_DIR?.startsWith('/')) return `${env.XDG_RUNTIME_DIR}/zstor/zstor.sock`
  const state = env.XDG_STATE_HOME?.startsWith('/') ? env.XDG_STATE_HOME : `${os.homedir()}/.local/state`
  return `${state}/zstor/run/zstor.sock`
}

export class Client {
  #socket
  #received = []
  #lastId = 0
  #calls = new Map() // id → {resolve, reject, onProgress}
  #streams = new Map() // id → the queue of a read
  #lost = null

  /** A connection to the daemon. */
  static connect(socketPath = defaultSocket()) {
    return new Promise((resolve, reject) => {
      const socket = net.createConnection(socketPath)
      socket.once('error', reject)
      socket.once('connect', () => {
        socket.off('error', reject)
        resolve(new Client(socket))
      })
    })
  }

  constructor(socket) {
    this.#socket = socket
    socket.on('data', (data) => this.#take(data))
    socket.on('error', (error) => this.#end(error))
    socket.on('close', () => this.#end(Object.assign(new Error('the daemon closed the connection'), { code: 'ECONNRESET' })))
  }

  /** End the connection; calls that run are cancelled. */
  close() {
    this.#socket.destroy()
  }

  [Symbol.dispose ?? Symbol.for('Symbol.dispose')]() {
    this.close()
  }

  /**
   * The result of any method. `signal` cancels it (unless it has begun to commit), `timeoutSeconds` is a deadline of the daemon's,
   * `onProgress` is called with {progress, total, message}.
   */
  call(method, params = {}, { signal, timeoutSeconds, onProgress, onReply } = {}) {
    if (this.#lost) return Promise.reject(this.#lost)
    if (signal?.aborted) return Promise.reject(signal.reason)
    const id = ++this.#lastId
    const meta = { ...(timeoutSeconds && { timeoutSeconds }), ...(onProgress && { progressToken: id }) }
    if (Object.keys(meta).length) params = { ...params, _meta: meta }
    return new Promise((resolve, reject) => {
      const cancel = () => this.#send({ method: '$/cancelRequest', params: { id } })
      signal?.addEventListener('abort', cancel, { once: true })
      const done = (settle) => (value) => {
        signal?.removeEventListener('abort', cancel)
        settle(value)
      }
      const failed = (error) => reject(error.type === 'cancelled' && signal?.aborted ? signal.reason : error)
      this.#calls.set(id, { resolve: done(resolve), reject: done(failed), onProgress, onReply })
      this.#send({ id, method, params })
    })
  }

  /** Store a string, bytes, or what an (async) iterable gives of them. `params` as for object.write; answers the metadata. */
  async put(key, value, params = {}, options = {}) {
    if (typeof value === 'string' || value instanceof Uint8Array) {
      const bytes = Buffer.from(value)
      if (bytes.length <= INLINE_BYTES) {
        return (await this.call('object.write', { key, value_b64: bytes.toString('base64'), ...params }, options)).metadata
      }
      value = [bytes]
    }
    return this.writeStream(key, value, params, options)
  }

  /** The object's bytes in one Buffer. `params` as for object.read: namespace, offset, length. */
  async get(key, params = {}, options = {}) {
    const pieces = []
    for await (const piece of this.readStream(key, params, options)) pieces.push(piece)
    return Buffer.concat(pieces)
  }

  /** Store the file at a path; the daemon reads it. The way for large ones. */
  async putFile(key, file, params = {}, options = {}) {
    return (await this.call('object.write_file', { key, path: path.resolve(file), ...params }, options)).metadata
  }

  /** Write the object to a path, whole or not at all; the daemon writes it. */
  async getFile(key, file, params = {}, options = {}) {
    return (await this.call('object.read_file', { key, path: path.resolve(file), ...params }, options)).metadata
  }

  /** Store what an (async) iterable of strings or bytes gives. If it throws, or the signal aborts, nothing is stored. */
  async writeStream(key, iterable, params = {}, { signal, timeoutSeconds } = {}) {
    const { stream } = await this.call('object.write_stream', { key, ...params }, { signal, timeoutSeconds })
    try {
      let seq = 0
      const waiting = []
      for await (const chunk of iterable) {
        const bytes = Buffer.from(chunk)
        for (let start = 0; start < bytes.length; start += PIECE_BYTES) {
          signal?.throwIfAborted()
          const value_b64 = bytes.subarray(start, start + PIECE_BYTES).toString('base64')
          const answered = this.call('stream.write', { stream, seq: seq++, value_b64 })
          answered.catch(() => {}) // it is looked at when its turn comes
          waiting.push(answered)
          if (waiting.length >= WINDOW) await waiting.shift()
        }
      }
      for (const answered of waiting) await answered
      return (await this.call('stream.close', { stream }, { signal })).metadata
    } catch (error) {
      await this.call('stream.abort', { stream }).catch(() => {}) // it may be gone already
      throw error
    }
  }

  /** The object's bytes, piece by piece: an async iterator of Buffers. */
  async *readStream(key, params = {}, options = {}) {
    for await (const data of this.#messages('object.read_stream', { key, ...params }, options)) {
      yield Buffer.from(data.value_b64, 'base64')
    }
  }

  /** Along linked objects from a key on: an async iterator of {key, metadata, references, value_b64?}. */
  async *walk(key, params = {}, options = {}) {
    for await (const data of this.#messages('object.walk', { start_key: key, ...params, stream: true }, options)) yield data.item
  }

  /** The objects whose keys begin with a prefix, in the order of their keys: an async iterator of {key, metadata}. */
  list(prefix = '', params = {}, options = {}) {
    return this.pages('object.list', 'items', { prefix, ...params }, options)
  }

  /** The members called `name` of all pages of a method that answers pages. */
  async *pages(method, name, params = {}, options = {}) {
    let cursor
    do {
      const page = await this.call(method, { ...params, ...(cursor && { cursor }) }, options)
      yield* page[name]
      cursor = page.cursor
    } while (cursor)
  }

  /** The messages of a stream that a method opens; each is acknowledged when it has been used, so that no more than four wait. */
  async *#messages(method, params, { signal, timeoutSeconds } = {}) {
    const queue = { items: [], wake: () => {} }
    const onReply = (opened) => this.#streams.set(opened.stream, queue) // at once: the first messages are right behind it
    const { stream } = await this.call(method, params, { signal, timeoutSeconds, onReply })
    const wake = () => queue.wake()
    signal?.addEventListener('abort', wake)
    let ended = false
    try {
      for (;;) {
        signal?.throwIfAborted()
        if (!queue.items.length) {
          if (this.#lost) throw this.#lost
          await new Promise((resolve) => (queue.wake = resolve))
          continue
        }
        const data = queue.items.shift()
        if (data.end) {
          ended = true
          if (data.error) throw new ZstorError(data.error)
          return
        }
        yield data
        this.call('stream.ack', { stream, seq: data.seq }).catch(() => {}) // the last ones may come after the end
      }
    } finally {
      signal?.removeEventListener('abort', wake)
      this.#streams.delete(stream)
      if (!ended) await this.call('stream.abort', { stream }).catch(() => {})
    }
  }

  // --- The wire: one line of JSON a message ---

  #send(message) {
    this.#socket.write(`${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`)
  }

  #take(data) {
    let start = 0
    for (let end = data.indexOf(10); end >= 0; end = data.indexOf(10, start)) {
      this.#received.push(data.subarray(start, end))
      const line = Buffer.concat(this.#received).toString()
      this.#received = []
      start = end + 1
      if (line.trim()) this.#handle(JSON.parse(line))
    }
    if (start < data.length) this.#received.push(data.subarray(start))
  }

  #handle(message) {
    if (message.method === 'notifications/progress') {
      const { progressToken, ...progress } = message.params
      this.#calls.get(progressToken)?.onProgress?.(progress)
    } else if (message.method === 'stream.data' || message.method === 'stream.end') {
      const { stream, ...data } = message.params
      const queue = this.#streams.get(stream) // none: it was given up, and these were on their way
      queue?.items.push({ ...data, end: message.method === 'stream.end' })
      queue?.wake()
    } else if ('id' in message) {
      const call = this.#calls.get(message.id)
      this.#calls.delete(message.id)
      if (message.error) call?.reject(new ZstorError(message.error))
      else {
        call?.onReply?.(message.result)
        call?.resolve(message.result)
      }
      if (message.id === null && message.error) this.#end(new ZstorError(message.error))
    }
  }

  #end(error) {
    this.#lost ??= error
    for (const call of this.#calls.values()) call.reject(this.#lost)
    this.#calls.clear()
    for (const queue of this.#streams.values()) queue.wake()
    this.#socket.destroy()
  }
}
