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
//
// Calls run side by side on one connection. Errors of the daemon are ZstorErrors with `code`, `type`, `retryable`, `hint`, `data`.
// Others have the code ENOENT or ECONNREFUSED (no daemon), ECONNRESET (it went away) or ETIMEDOUT: it did not even answer that a
// call's time is over, or that it is cancelled. After these the connection is closed.

import { once } from 'node:events'
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'

const PIECE_BYTES = 1024 * 1024 // of a stream's message, at most
const WINDOW = 4 // messages of a stream not yet answered
const INLINE_BYTES = 512 * 1024 // larger values go as a stream
const failure = (code, message) => Object.assign(new Error(message), { code })

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
  #calls = new Map() // id → {done, resolve, reject, onProgress, onReply}
  #streams = new Map() // id → the queue of a read
  #lost = null
  #graceSeconds

  /** A connection to the daemon. It is given up where `graceSeconds` after a deadline or an abort the call has no answer. */
  static async connect(socketPath = defaultSocket(), { graceSeconds = 30 } = {}) {
    const long = Buffer.byteLength(socketPath) > 107 // that a socket's address holds
    const directory = long && fs.openSync(path.dirname(socketPath), fs.constants.O_DIRECTORY)
    const socket = net.createConnection(long ? `/proc/self/fd/${directory}/${path.basename(socketPath)}` : socketPath)
    const nobody = ({ code, message }) => Promise.reject(failure(code, `no daemon at ${socketPath}: ${message} (start it: zstor daemon)`))
    await once(socket, 'connect').catch(nobody).finally(() => long && fs.closeSync(directory))
    return new this(socket, graceSeconds)
  }

  constructor(socket, graceSeconds) {
    this.#socket = socket
    this.#graceSeconds = graceSeconds
    socket.on('data', (data) => this.#take(data))
    socket.on('error', (error) => this.#end(failure('ECONNRESET', `the connection was lost: ${error.message}`)))
    socket.on('close', () => this.#end(failure('ECONNRESET', 'the daemon closed the connection')))
  }

  /** End the connection; calls that run are cancelled. */
  close() {
    this.#end(failure('ECONNRESET', 'the connection was closed'))
  }

  /**
   * The result of any method. `signal` cancels it (unless it has begun to commit), `timeoutSeconds` does so then (`timed_out`),
   * `onProgress` is called with {progress, total, message}. `params._meta` may be { detach: true }, which makes it a job.
   */
  call(method, params = {}, { onProgress, onReply, ...options } = {}) {
    if (this.#lost) return Promise.reject(this.#lost)
    if (options.signal?.aborted) return Promise.reject(options.signal.reason)
    const id = ++this.#lastId
    if (onProgress) params = { ...params, _meta: { ...params._meta, progressToken: id } }
    return new Promise((resolve, reject) => {
      this.#send({ id, method, params }) // may throw, for what JSON cannot say: nothing has begun then
      let timer
      const giveUp = () => this.#end(failure('ETIMEDOUT', `no answer to ${method}: it may have been done`))
      const { signal, release } = stopper(options, () => {
        this.#send({ method: '$/cancelRequest', params: { id } })
        timer = setTimeout(giveUp, this.#graceSeconds * 1000)
      })
      const done = () => (clearTimeout(timer), release())
      const failed = (error) => reject(signal.aborted && error.type === 'cancelled' ? signal.reason : error)
      this.#calls.set(id, { done, resolve, reject: failed, onProgress, onReply })
    })
  }

  /** Store a string, bytes, or what an (async) iterable gives of them. `params` as for object.write; answers the metadata. */
  async put(key, value, params = {}, options = {}) {
    if (typeof value === 'string' || ArrayBuffer.isView(value) || !(value?.[Symbol.asyncIterator] ?? value?.[Symbol.iterator])) {
      const bytes = bytesOf(value)
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
  async writeStream(key, iterable, params = {}, options = {}) {
    let interrupt, stream, writing
    const interrupted = new Promise((_, reject) => (interrupt = reject))
    interrupted.catch(() => {}) // nobody may be waiting for it
    iterable?.on?.('error', interrupt) // a Readable that fails before it is read would end the program
    const { signal, release } = stopper(options, (reason) => interrupt(reason))
    const lost = () => interrupt(this.#lost)
    this.#socket.once('close', lost)
    try {
      stream = (await this.call('object.write_stream', { key, ...params }, { signal })).stream
      writing = this.#write(stream, iterable, signal)
      await Promise.race([writing, interrupted]) // the iterable may have nothing to give for long
      return (await this.call('stream.close', { stream }, { signal })).metadata
    } catch (error) {
      writing?.catch(() => {})
      iterable?.destroy?.() // a Readable that nobody will read
      if (stream) await this.#abort(stream)
      throw error
    } finally {
      this.#socket.off('close', lost)
      release()
    }
  }

  /** The object's bytes, piece by piece: an async iterator of Buffers. */
  async *readStream(key, params = {}, options = {}) {
    for await (const data of this.#messages('object.read_stream', { key, ...params }, options)) yield Buffer.from(data.value_b64, 'base64')
  }

  /** Along linked objects from a key on: an async iterator of {key, metadata, references, value_b64?}. */
  async *walk(key, params = {}, options = {}) {
    for await (const data of this.#messages('object.walk', { start_key: key, ...params, stream: true }, options)) yield data.item
  }

  /** The objects whose keys begin with a prefix, in the order of their keys: an async iterator of {key, metadata}. */
  list(prefix = '', params = {}, options = {}) {
    return this.pages('object.list', 'items', { prefix, ...params }, options)
  }

  /** The members called `name` of all pages of a method. What does not open is thrown behind the last one, as `corrupt_record`. */
  async *pages(method, name, params = {}, options = {}) {
    let cursor, damaged
    do {
      const page = await this.call(method, { ...params, ...(cursor && { cursor }) }, options).catch((error) => {
        if (!error?.data?.cursor) throw error
        damaged = error
        return { [name]: [], cursor: error.data.cursor }
      })
      yield* page[name]
      cursor = page.cursor
    } while (cursor)
    if (damaged) throw damaged
  }

  async #write(stream, iterable, signal) {
    let seq = 0
    const waiting = []
    for await (const chunk of iterable) {
      const bytes = bytesOf(chunk)
      for (let start = 0; start < bytes.length; start += PIECE_BYTES) {
        signal.throwIfAborted()
        const value_b64 = bytes.subarray(start, start + PIECE_BYTES).toString('base64')
        const answered = this.call('stream.write', { stream, seq: seq++, value_b64 })
        answered.catch(() => {}) // it is looked at when its turn comes
        waiting.push(answered)
        if (waiting.length >= WINDOW) await waiting.shift()
      }
    }
    for (const answered of waiting) await answered
  }

  /** The messages of a stream that a method opens; each is acknowledged when it has been used, so that no more than four wait. */
  async *#messages(method, params, options) {
    const queue = { items: [], wake: () => {} }
    const { signal, release } = stopper(options, () => queue.wake())
    const onReply = (opened) => this.#streams.set(opened.stream, queue) // at once: the first messages are right behind it
    let stream, ended
    try {
      stream = (await this.call(method, params, { signal, onReply })).stream
      for (;;) {
        signal.throwIfAborted()
        if (!queue.items.length) {
          if (this.#lost) throw this.#lost
          await new Promise((resolve) => (queue.wake = resolve))
          continue
        }
        const data = queue.items.shift()
        ended = data.end
        if (data.error) throw new ZstorError(data.error)
        if (ended) return
        yield data
        this.call('stream.ack', { stream, seq: data.seq }).catch(() => {}) // the last ones may come after the end
      }
    } finally {
      release()
      this.#streams.delete(stream)
      if (stream && !ended) await this.#abort(stream)
    }
  }

  #abort(stream) {
    return this.call('stream.abort', { stream }, { timeoutSeconds: this.#graceSeconds }).catch(() => {}) // it may be gone already
  }

  // --- The wire: one line of JSON a message ---

  #send(message) {
    const line = JSON.stringify({ jsonrpc: '2.0', ...message })
    if (/(?<!\\)(?:\\\\)*\\ud[89a-f]/.test(line)) throw new TypeError('half of a surrogate pair is no text') // its answer would name no call, and end all
    this.#socket.write(`${line}\n`)
  }

  #take(data) {
    let start = 0
    for (let end = data.indexOf(10); end >= 0; end = data.indexOf(10, start)) {
      this.#received.push(data.subarray(start, end))
      const line = Buffer.concat(this.#received).toString()
      this.#received = []
      start = end + 1
      try {
        this.#handle(JSON.parse(line))
      } catch (error) {
        this.#end(error) // onProgress threw, or this is no daemon
      }
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
      call?.done()
      if (message.error) call?.reject(new ZstorError(message.error))
      else call?.resolve(message.result, call.onReply?.(message.result))
      if (message.id === null && message.error) this.#end(new ZstorError(message.error))
    }
  }

  #end(error) {
    this.#lost ??= error
    for (const call of this.#calls.values()) call.reject(this.#lost, call.done())
    this.#calls.clear()
    for (const queue of this.#streams.values()) queue.wake()
    this.#socket.destroy()
  }
}

function bytesOf(value) {
  if (typeof value === 'string' || value instanceof ArrayBuffer) return Buffer.from(value)
  if (ArrayBuffer.isView(value)) return Buffer.from(value.buffer, value.byteOffset, value.byteLength)
  throw new TypeError(`neither a string nor bytes, nor a stream of them: ${value?.constructor?.name ?? value}`)
}

/** A signal that aborts when another one does, and as `timed_out` when the time is over; `onStop` is called then. */
function stopper({ signal, timeoutSeconds } = {}, onStop) {
  const controller = new AbortController()
  controller.signal.addEventListener('abort', () => onStop(controller.signal.reason))
  const stop = () => controller.abort(signal.reason)
  const late = { code: 302, message: `not done in ${timeoutSeconds} s`, data: { type: 'timed_out' } }
  const timer = timeoutSeconds && setTimeout(() => controller.abort(new ZstorError(late)), Math.min(timeoutSeconds * 1000, 2 ** 31 - 1))
  if (signal?.aborted) stop()
  signal?.addEventListener('abort', stop)
  return { signal: controller.signal, release: () => (clearTimeout(timer), signal?.removeEventListener('abort', stop)) }
}
