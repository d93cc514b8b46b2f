// node get.js HOST MANY [GET]: prints the first address of a name by the C library and by Node's own resolver, how many addresses MANY
// has, and with a third word what HOST's web server says.
const dns = require('dns').promises, http = require('http')
const [host, many, get] = process.argv.slice(2)
const main = async () => {
  console.log((await dns.lookup(host)).address)
  console.log((await dns.resolve4(host))[0])
  console.log((await dns.resolve4(many)).length)
  if (get) http.get('http://' + host + '/', r => r.pipe(process.stdout))
}
main().catch(e => { console.error(e); process.exit(1) })
