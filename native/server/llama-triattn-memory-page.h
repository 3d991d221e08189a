// a raw string for llama-triattn-memory.cpp: the page, whole, as a browser gets it
R"html(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Memory · triattn-local</title><link rel="icon" href="data:,">
<style>
:root{--bg:#14171c;--fg:#d8dee6;--dim:#8791a0;--line:#2a3039;--hot:#ffb454;--cold:#26405e;--back:#7bd88f;--none:#0c0e11}
@media (prefers-color-scheme:light){:root{--bg:#fafaf7;--fg:#22272e;--dim:#6a7482;--line:#dcdfe4;--hot:#c25e00;--cold:#bcd3ea;--back:#1f8a3b;--none:#e9eaec}}
*{box-sizing:border-box}body{margin:0;padding:20px 24px;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
h1{font-size:18px;margin:0 0 4px}p{margin:4px 0}.dim{color:var(--dim)}section{margin:22px 0}
h2{font-size:15px;margin:0 0 6px}canvas{width:100%;display:block;image-rendering:pixelated;border:1px solid var(--line);cursor:crosshair}
.legend span{margin-right:18px;white-space:nowrap}.legend i{display:inline-block;width:12px;height:12px;margin-right:6px;vertical-align:-1px}
.words{min-height:4.6em;margin-top:8px;padding:8px 10px;border:1px solid var(--line);font:13px/1.45 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
#problem{color:#e5484d}input{font:inherit;padding:4px 8px;width:22em;max-width:100%}
</style></head><body>
<h1>What each layer holds of the text</h1>
<p class="dim">A row is a layer, the text runs from left (its beginning) to right. Point at a column to read it.</p>
<p class="legend"><span><i style="background:var(--hot)"></i>held by the heads: the stronger, the more of them</span><span><i style="background:var(--back)"></i>came back while you looked</span><span><i style="background:var(--cold)"></i>out of the cache, in the cold tier</span><span><i style="background:var(--none)"></i>gone</span></p>
<p id="problem" role="status"></p>
<form id="ask" hidden><label>API key <input type="password" id="key" autocomplete="off"></label></form>
<div id="slots"><p class="dim">Waiting for the server.</p></div>
<script>
'use strict';
const $=id=>document.getElementById(id), views=new Map();
let key=sessionStorage.getItem('triattn-key')||'', pointed=new Map();
$('ask').onsubmit=e=>{e.preventDefault();key=$('key').value;sessionStorage.setItem('triattn-key',key);$('ask').hidden=true;look()};
const css=n=>getComputedStyle(document.documentElement).getPropertyValue(n).trim();
const rgb=h=>[1,3,5].map(i=>parseInt(h.slice(i,i+2),16));
const size=n=>n<1024?n+' B':n<1048576?(n/1024).toFixed(1)+' KiB':n<1073741824?(n/1048576).toFixed(1)+' MiB':(n/1073741824).toFixed(2)+' GiB';
async function get(path){
  const r=await fetch(path,{headers:key?{Authorization:'Bearer '+key}:{},cache:'no-store'});
  if(r.status===401){$('ask').hidden=false;throw Error('This server wants an API key.')}
  if(r.status===503)throw Error('The model is being loaded.');
  if(!r.ok)throw Error('The server answers '+r.status+' to '+path+'; /slots must not be turned off.');
  return r.json();
}
function view(id){
  if(views.has(id))return views.get(id);
  if(!views.size)$('slots').replaceChildren();
  const s=document.createElement('section'),v={s};
  for(const [name,tag,cls] of [['head','h2',''],['about','p','dim'],['map','canvas',''],['words','div','words']]){v[name]=document.createElement(tag);v[name].className=cls;s.append(v[name])}
  v.map.onmousemove=e=>{const b=v.map.getBoundingClientRect();pointed.set(id,(e.clientX-b.left)/b.width);say(v)};
  v.map.onmouseleave=()=>{pointed.delete(id);say(v)};
  s.id='slot'+id;views.set(id,v);$('slots').append(s);return v;
}
function say(v){
  const d=v.data,n=d.words.length,at=pointed.get(d.id);
  if(!n){v.words.textContent='';return}
  if(at===undefined){v.words.textContent='… '+d.words.slice(-4).join('');return}
  const c=Math.min(n-1,Math.max(0,Math.floor(at*n))),first=Math.floor(c*d.n_tokens/n),end=Math.floor((c+1)*d.n_tokens/n);
  let held=0;for(const l of d.layers)held+=(l.held.charCodeAt(c)-97)/25;
  const share=d.layers.length?Math.round(100*held/d.layers.length)+' % held':'all held';
  v.words.textContent='tokens '+first.toLocaleString()+' to '+(end-1).toLocaleString()+' · '+share+'\n'+d.words.slice(Math.max(0,c-2),c).join('')+'⟦'+d.words[c]+'⟧'+d.words.slice(c+1,c+3).join('');
}
function draw(v){
  const d=v.data,n=d.words.length,rows=d.layers.length?d.layers:[{held:'z'.repeat(n),back:'a'.repeat(n)}];
  v.map.width=Math.max(1,n);v.map.height=rows.length;v.map.style.height=Math.max(60,Math.min(440,rows.length*11))+'px';
  v.map.setAttribute('role','img');v.map.setAttribute('aria-label','What '+rows.length+' layers hold of '+d.n_tokens+' tokens');
  if(!n)return;
  const g=v.map.getContext('2d'),p=g.createImageData(n,rows.length),hot=rgb(css('--hot')),back=rgb(css('--back')),away=rgb(css(d.cold_bytes_max?'--cold':'--none'));
  rows.forEach((l,y)=>{for(let x=0;x<n;x++){
    const h=(l.held.charCodeAt(x)-97)/25,b=(l.back.charCodeAt(x)-97)/25,o=4*(y*n+x),on=h?0.25+0.75*h:0;
    for(let k=0;k<3;k++)p.data[o+k]=away[k]*(1-on)+(hot[k]*(1-b)+back[k]*b)*on;
    p.data[o+3]=255}});
  g.putImageData(p,0,0);
}
async function look(){
  try{
    const slots=await get('slots'),map=await get('memory/map');
    $('problem').textContent='';
    for(const d of map.slots){
      const s=slots.find(x=>x.id===d.id)||{},t=s.triattention||{},v=view(d.id);v.data=d;
      v.head.textContent='Slot '+d.id+(s.is_processing?' · at work':' · at rest')+' · '+d.n_tokens.toLocaleString()+' tokens';
      v.about.textContent=d.evicts?
        'cells '+(t.n_cells_used||0).toLocaleString()+', budget '+(t.budget||0).toLocaleString()+' a head · cache '+size(d.kv_bytes)+', full attention '+size(d.kv_bytes_full)+
        ' · '+(t.n_rounds||0).toLocaleString()+' rounds evicted '+(t.n_tokens_evicted||0).toLocaleString()+' tokens'+
        (d.cold_bytes_max?' · cold tier '+size(d.cold_bytes)+' of '+size(d.cold_bytes_max)+', '+(t.n_rows_recalled||0).toLocaleString()+' rows came back':' · no cold tier'):
        'Full attention: every layer holds every token.';
      draw(v);say(v);
    }
  }catch(e){$('problem').textContent=e instanceof TypeError?'No server answers.':e.message}
}
async function run(){for(;;){if(!document.hidden)await look();await new Promise(r=>setTimeout(r,1000))}}
run();
</script></body></html>
)html"
