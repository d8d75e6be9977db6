// A js-libp2p host that does what it is told: a line of JSON in, a line of JSON out.
//
//   {"id": 1, "do": "ping", "peer": "12D3..."}  ──▶  {"id": 1, "value": 3.1}  or  {"id": 1, "error": "..."}
//
// Everything in it is js-libp2p's own; nothing is tuned but its limits on streams of a
// protocol and on connections a second.
// With the argument "unsigned" its gossip neither signs nor says who sent what; with "bare" it has neither gossip nor a DHT, which dial peers on their own account;
// with "relay" it is a relay, with "hidden" it listens nowhere, with "web" it listens for WebSockets
// and speaks nothing else.
// It ends when its standard input does.

import { createHash, randomBytes } from 'node:crypto'
import { createInterface } from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { gossipsub } from '@libp2p/gossipsub'
import { identify, identifyPush } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { webSockets } from '@libp2p/websockets'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const ECHO = '/interop/echo/1' // every byte comes back, at once
const DIGEST = '/interop/digest/1' // after the end of what came: its SHA-256
const RESET = '/interop/reset/1' // reset at the first byte
const MANY = { maxInboundStreams: 1024, maxOutboundStreams: 1024, runOnLimitedConnection: true }
const PIECE_BYTES = 64 * 1024

const sha256 = (data) => createHash('sha256').update(data).digest()
const bytesOf = (chunk) => chunk.subarray() // of a Uint8Array or a list of them

// a record of the namespace "interop" is /interop/<the first 32 hex digits of its value's SHA-256>
let lenient = false
async function checkRecord (key, value) {
  const name = new TextDecoder().decode(key).split('/')[2]
  if (!lenient && name !== sha256(value).toString('hex').slice(0, 32)) throw new Error('not the digest of the value')
}

const talkative = process.argv.includes('bare') ? {} : {
  gossip: gossipsub({
    allowPublishToZeroTopicPeers: false,
    ...(process.argv.includes('unsigned') ? { globalSignaturePolicy: 'StrictNoSign' } : {})
  }),
  dht: kadDHT({
    protocol: '/ipfs/kad/1.0.0',
    clientMode: false,
    peerInfoMapper: passthroughMapper, // loopback addresses too
    validators: { interop: checkRecord },
    selectors: { interop: () => 0 }
  })
}

const web = process.argv.includes('web')
const place = web ? '/ip4/127.0.0.1/tcp/0/ws' : '/ip4/127.0.0.1/tcp/0'

const node = await createLibp2p({
  addresses: { listen: process.argv.includes('hidden') ? [] : [place] },
  transports: [web ? webSockets() : tcp(), circuitRelayTransport()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionManager: { inboundConnectionThreshold: 100 }, // a second from one address; 5 by default
  services: {
    identify: identify(),
    identifyPush: identifyPush(),
    ping: ping(),
    ...talkative,
    ...(process.argv.includes('relay') ? { relay: circuitRelayServer() } : {})
  }
})

async function send (stream, data) {
  for (let at = 0; at < data.length; at += PIECE_BYTES) {
    if (!stream.send(data.subarray(at, at + PIECE_BYTES))) await stream.onDrain()
  }
}

async function receive (stream, size = Infinity) {
  const pieces = []
  let length = 0
  for await (const chunk of stream) {
    pieces.push(bytesOf(chunk))
    length += chunk.byteLength
    if (length >= size) break
  }
  return Buffer.concat(pieces)
}

await node.handle(ECHO, async (stream) => {
  for await (const chunk of stream) await send(stream, bytesOf(chunk))
  await stream.close()
}, MANY)

await node.handle(DIGEST, async (stream) => {
  const whole = createHash('sha256')
  for await (const chunk of stream) whole.update(bytesOf(chunk))
  await send(stream, whole.digest())
  await stream.close()
}, MANY)

await node.handle(RESET, async (stream) => {
  for await (const _ of stream) stream.abort(new Error('as asked'))
}, MANY)

// on the connection that there is; `node.dialProtocol` would look for a direct one first
const open = (peer, protocol) => {
  const [connection] = node.getConnections(peerIdFromString(peer))
  if (connection == null) throw new Error(`not connected to ${peer}`)
  return connection.newStream(protocol, { runOnLimitedConnection: true })
}

// ---- gossip: what came, and who waits for it

const heard = new Map() // topic -> [text]
const waiting = new Set()

// resolves once `holds` does; asked again whenever something has happened
function until (holds) {
  if (holds()) return Promise.resolve()
  return new Promise((resolve) => waiting.add({ holds, resolve }))
}

function somethingHappened () {
  for (const one of waiting) {
    if (one.holds()) { waiting.delete(one); one.resolve() }
  }
}

node.services.gossip?.addEventListener('message', ({ detail }) => {
  heard.get(detail.topic)?.push(new TextDecoder().decode(detail.data))
  somethingHappened()
})
for (const event of ['subscription-change', 'gossipsub:graft']) {
  node.services.gossip?.addEventListener(event, somethingHappened)
}
for (const event of ['peer:identify', 'peer:update', 'self:peer:update', 'peer:connect', 'peer:disconnect']) {
  node.addEventListener(event, somethingHappened)
}
const peersKnown = new Map() // peer -> what identify said
node.addEventListener('peer:identify', ({ detail }) => {
  peersKnown.set(detail.peerId.toString(), detail)
  somethingHappened()
})

async function echo (peer, bytes, protocol = ECHO) {
  const data = randomBytes(bytes)
  const began = performance.now()
  const stream = await open(peer, protocol)
  const [back] = await Promise.all([receive(stream, bytes), send(stream, data)])
  const ms = performance.now() - began
  await stream.close()
  if (!back.equals(data)) throw new Error(`sent ${bytes} bytes, ${back.length} others came back`)
  return ms
}

const texts = (addresses) => addresses.map((address) => address.toString())

const deeds = {
  dial: async ({ address }) => (await node.dial(multiaddr(address))).remotePeer.toString(),

  connection: ({ peer }) => {
    const [one] = node.getConnections(peerIdFromString(peer))
    const limits = one.limits == null
      ? null // direct
      : { bytes: Number(one.limits.bytes), seconds: Math.round(one.limits.seconds) }
    return { security: one.encryption, muxer: one.multiplexer, direction: one.direction, limits }
  },

  // whether any connection is
  direct: ({ peer }) => node.getConnections(peerIdFromString(peer)).some((one) => one.limits == null),

  identified: async ({ peer }) => {
    await until(() => peersKnown.has(peer))
    const said = peersKnown.get(peer)
    return {
      agent: said.agentVersion,
      protocols: said.protocols,
      listens: texts(said.listenAddrs),
      observed: said.observedAddr?.toString()
    }
  },

  // one more protocol, of which identify push tells
  serve: async ({ protocol }) => { await node.handle(protocol, (stream) => stream.close()) },

  // until the peer has said that it speaks a protocol
  speaks: async ({ peer, protocol }) => {
    for (;;) {
      const { protocols } = await node.peerStore.get(peerIdFromString(peer))
      if (protocols.includes(protocol)) return
      await new Promise((resolve) => node.addEventListener('peer:update', resolve, { once: true }))
    }
  },

  hangUp: async ({ peer }) => {
    await node.hangUp(peerIdFromString(peer))
    peersKnown.delete(peer)
  },

  connected: async ({ peer, yes }) => {
    await until(() => node.getConnections(peerIdFromString(peer)).length > 0 === yes)
  },

  // timed here: its own figure is in whole milliseconds
  ping: async ({ peer }) => {
    const began = performance.now()
    await node.services.ping.ping(peerIdFromString(peer))
    return performance.now() - began
  },

  echo: ({ peer, bytes, protocol = ECHO }) => echo(peer, bytes, protocol),

  streams: async ({ peer, count, bytes }) => {
    const began = performance.now()
    await Promise.all(Array.from({ length: count }, () => echo(peer, bytes)))
    return performance.now() - began
  },

  // writes all, ends its side, and only then reads
  halfClose: async ({ peer, bytes }) => {
    const data = randomBytes(bytes)
    const stream = await open(peer, DIGEST)
    await send(stream, data)
    await stream.close()
    return (await receive(stream)).equals(sha256(data))
  },

  // what a stream says that the other side resets
  resetByThem: async ({ peer }) => {
    const stream = await open(peer, RESET)
    const closed = new Promise((resolve) => stream.addEventListener('close', ({ error }) => resolve(error?.name ?? 'no error')))
    stream.send(new Uint8Array(1))
    return closed
  },

  resetByUs: async ({ peer }) => {
    const stream = await open(peer, ECHO)
    stream.send(new Uint8Array(1))
    await receive(stream, 1)
    stream.abort(new Error('as asked'))
  },

  subscribe: ({ topic }) => {
    heard.set(topic, [])
    node.services.gossip.subscribe(topic)
  },

  subscriber: ({ topic, peer }) =>
    until(() => node.services.gossip.getSubscribers(topic).some((one) => one.toString() === peer)),

  mesh: ({ topic, peer }) => until(() => node.services.gossip.getMeshPeers(topic).includes(peer)),

  publish: async ({ topic, text }) => {
    const { recipients } = await node.services.gossip.publish(topic, new TextEncoder().encode(text))
    return texts(recipients)
  },

  heard: async ({ topic, count }) => {
    await until(() => heard.get(topic).length >= count)
    return heard.get(topic)
  },

  gossipProtocol: ({ peer }) => node.services.gossip.streamsOutbound.get(peer)?.protocol,

  lenient: ({ yes }) => { lenient = yes },

  put: async ({ key, value }) => {
    const errors = []
    let kept = 0
    for await (const event of node.services.dht.put(Buffer.from(key), Buffer.from(value, 'hex'))) {
      if (event.name === 'QUERY_ERROR') errors.push(String(event.error))
      if (event.name === 'PEER_RESPONSE' && event.messageName === 'PUT_VALUE') kept += 1
    }
    return { kept, errors }
  },

  // from: whose answer it is, our own store's included
  get: async ({ key }) => {
    const found = []
    const errors = []
    for await (const event of node.services.dht.get(Buffer.from(key))) {
      if (event.name === 'VALUE') found.push({ value: Buffer.from(event.value).toString('hex'), from: event.from.toString() })
      if (event.name === 'QUERY_ERROR') errors.push(String(event.error))
    }
    return { found, errors }
  },

  dhtPeers: async ({ peer }) => {
    await until(() => node.services.dht.routingTable.size > 0)
    return node.services.dht.routingTable.size
  },

  // a reservation at a relay that we are connected to or can dial; the addresses that it gives us
  reserve: async ({ relay }) => {
    await node.components.transportManager.listen([multiaddr(`${relay}/p2p-circuit`)])
    const reserved = () => texts(node.getMultiaddrs()).filter((text) => text.includes('/p2p-circuit'))
    await until(() => reserved().length > 0)
    return reserved()
  }
}

const say = (line) => process.stdout.write(JSON.stringify(line) + '\n')

say({
  peer: node.peerId.toString(),
  addresses: texts(node.getMultiaddrs()),
  version: process.version
})

for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: deed, ...rest } = JSON.parse(line)
  Promise.resolve()
    .then(() => deeds[deed](rest))
    .then((value) => say({ id, value: value ?? null }))
    .catch((error) => say({ id, error: `${error.name}: ${error.message}` }))
}
await node.stop()
process.exit(0)
